"""What an agent exports: the job's facts from slot 0 alone, counters that count nothing twice."""

from typing import Any

import pytest

from trireme.metrics import exposition
from trireme.protocol import CheckpointReport, JobIdentity, Progress, Section
from trireme.protocol.messages import CheckpointFact
from trireme_trainer.agent.messages import ProgressEvent
from trireme_trainer.metrics import definitions
from trireme_trainer.metrics.pod import PodMetrics

IDENTITY = JobIdentity(namespace="default", name="j", kind="RLHFJob", uid="u")
JOB = 'job_name="j",kind="RLHFJob",namespace="default"'


def made(slot: int = 0) -> PodMetrics:
    return PodMetrics(IDENTITY, slot)


def series(metrics: PodMetrics) -> dict[str, float]:
    lines = exposition(metrics.registry.collect()).decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def event(step: int, *, tokens: int = 0, completed_at: float = 1.0, **facts: Any) -> ProgressEvent:
    known = {
        "loss": 2.0, "learning_rate": 1e-3, "grad_norm": 0.5, "tokens_per_second": 1e4, "tflops_per_device": 100.0,
        "mfu": 0.4, "mfu_basis": "h100-sxm", "step_seconds": 0.25,
    }  # fmt: skip
    progress = Progress(step=step, total_steps=9, tokens=tokens or step * 100, **{**known, **facts})
    return ProgressEvent(
        progress=progress,
        completed_at=completed_at,
        peak_memory_bytes=1 << 30,
        part_seconds={"data": 0.01, "forwardBackward": 0.2, "unheard": 1.0},
        busy_seconds=0.2,
        skew_seconds=-0.01,
    )


def fact(step: int) -> CheckpointFact:
    return CheckpointFact(
        step=step, uri=f"s3://b/{step}", manifest_digest="d", bytes=step * 1000, seconds_ago=1.0, upload_seconds=2.0
    )


def test_slot_0_tells_every_metric_of_a_job_that_is_not_optional() -> None:
    metrics = made()
    metrics.attempt(resumes=False)
    metrics.ranks_alive(lambda: 2)
    metrics.progress(0, event(1), first=True)
    metrics.section(Section.SAVE, 0.5)
    metrics.checkpoints(CheckpointReport(committed=[fact(1)]))
    told = {name.partition("{")[0] for name in series(metrics)}
    needed = [m for group in (definitions.JOB_GROUP, definitions.POD_GROUP) for m in group.metrics if not m.optional]
    missing = [m.name for m in needed if not {m.name, f"{m.name}_count"} & told]
    assert missing == []


def test_another_slot_tells_only_of_its_own_ranks() -> None:
    metrics = made(slot=1)
    metrics.attempt(resumes=False)
    metrics.ranks_alive(lambda: 1)
    metrics.progress(5, event(1), first=True)
    metrics.section(Section.SAVE, 0.5)
    metrics.checkpoints(CheckpointReport(committed=[fact(1)]))
    assert series(metrics) == {
        f"trireme_agent_ranks_alive{{{JOB}}}": 1,
        f'trireme_rank_peak_memory_bytes{{{JOB},rank="5"}}': 1 << 30,
        f'trireme_rank_busy_seconds{{{JOB},rank="5"}}': 0.2,
        f'trireme_rank_step_skew_seconds{{{JOB},rank="5"}}': -0.01,
    }


def test_durations_go_into_histograms_and_parts_without_a_name_do_not() -> None:
    metrics = made()
    metrics.progress(0, event(1), first=True)
    metrics.progress(0, event(2), first=True)
    found = series(metrics)
    assert found[f"trireme_step_duration_seconds_count{{{JOB}}}"] == 2
    assert found[f'trireme_step_part_duration_seconds_sum{{{JOB},part="forwardBackward"}}'] == pytest.approx(0.4)
    assert not [name for name in found if "unheard" in name]


def test_a_step_that_is_told_once_more_with_a_validation_is_not_counted_again() -> None:
    metrics = made()
    metrics.attempt(resumes=False)
    metrics.progress(0, event(1), first=True)
    metrics.progress(0, event(1, completed_at=0.0, validation_loss=2.5), first=True)
    found = series(metrics)
    assert found[f"trireme_step_duration_seconds_count{{{JOB}}}"] == 1
    assert found[f"trireme_train_tokens_total{{{JOB}}}"] == 100
    assert found[f"trireme_train_validation_loss{{{JOB}}}"] == 2.5


def test_tokens_of_repeated_steps_count_each_time_and_those_before_the_resume_point_never() -> None:
    metrics = made()
    metrics.attempt(resumes=False)
    for step in (1, 2, 3):
        metrics.progress(0, event(step), first=True)
    metrics.attempt(resumes=True)
    metrics.progress(0, event(3), first=True)
    metrics.progress(0, event(4), first=True)
    found = series(metrics)
    assert found[f"trireme_train_tokens_total{{{JOB}}}"] == 400
    assert found[f"trireme_train_step{{{JOB}}}"] == 4
    fresh = made()
    fresh.attempt(resumes=True)
    fresh.progress(0, event(500), first=True)
    fresh.progress(0, event(501), first=True)
    assert series(fresh)[f"trireme_train_tokens_total{{{JOB}}}"] == 100


def test_what_an_algorithm_measures_has_a_name_of_its_own_and_a_phase() -> None:
    measured = {
        "reward": 0.7, "kl": 0.01, "validation/reward": 0.6, "start/reward": 0.1, "rewards/length": 0.3, "new": 1.0,
    }  # fmt: skip
    metrics = made()
    metrics.progress(0, event(1, metrics=measured), first=True)
    found = {name: value for name, value in series(metrics).items() if "_rlhf_" in name}
    assert found == {
        f'trireme_rlhf_reward{{{JOB},phase="train"}}': 0.7,
        f'trireme_rlhf_reward{{{JOB},phase="validation"}}': 0.6,
        f'trireme_rlhf_reward{{{JOB},phase="start"}}': 0.1,
        f'trireme_rlhf_kl_nats{{{JOB},phase="train"}}': 0.01,
        f'trireme_rlhf_reward_part{{{JOB},phase="train",reward="length"}}': 0.3,
    }


def test_a_checkpoint_counts_once_however_often_it_is_reported() -> None:
    metrics = made()
    metrics.checkpoints(CheckpointReport(committed=[fact(1)]))
    metrics.checkpoints(CheckpointReport(committed=[fact(2), fact(1)]))
    metrics.checkpoints(CheckpointReport(committed=[fact(2), fact(1)]))
    found = series(metrics)
    assert found[f"trireme_checkpoint_upload_seconds_count{{{JOB}}}"] == 2
    assert found[f"trireme_checkpoint_bytes{{{JOB}}}"] == 2000


def test_a_restore_counts_only_where_an_attempt_resumes() -> None:
    metrics = made()
    name = f"trireme_checkpoint_restore_seconds_count{{{JOB}}}"
    metrics.attempt(resumes=False)
    metrics.section(Section.RESTORE, 1.0)
    assert name not in series(metrics)
    metrics.attempt(resumes=True)
    metrics.section(Section.RESTORE, 1.0)
    assert series(metrics)[name] == 1


def test_ranks_of_an_earlier_attempt_are_not_told() -> None:
    metrics = made(slot=1)
    metrics.progress(1, event(1), first=True)
    metrics.attempt(resumes=True)
    metrics.progress(0, event(2), first=True)
    assert {name.rpartition("rank=")[2] for name in series(metrics) if "rank=" in name} == {'"0"}'}


def test_failed_saves_count_by_reason() -> None:
    metrics = made(slot=1)
    metrics.save_failed("StoreUnavailable")
    metrics.save_failed("StoreUnavailable")
    assert series(metrics)[f'trireme_checkpoint_failures_total{{{JOB},reason="StoreUnavailable"}}'] == 2
