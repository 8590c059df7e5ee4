"""The agent's decisions that need no process: fencing, accounting, causes, deletions."""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import DistBackendError

from trireme.checkpoints import JobKeys
from trireme.protocol import FailureKind, JobConfig, ResumePoint, Section, Settings
from trireme_trainer.agent.accounting import CategoryClock, category_of
from trireme_trainer.agent.channel import RankChannel
from trireme_trainer.agent.classify import RankEnd, first_cause
from trireme_trainer.agent.environment import AgentEnvironment
from trireme_trainer.agent.fence import Fence
from trireme_trainer.agent.launcher import Launcher
from trireme_trainer.agent.logs import RankLog
from trireme_trainer.agent.messages import FailedEvent
from trireme_trainer.agent.ranks import RankProcess
from trireme_trainer.agent.watch import HangWatch
from trireme_trainer.checkpoint.inventory import Inventory, ResumeRecord, StoredStep
from trireme_trainer.checkpoint.retention import select_deletions
from trireme_trainer.rank.entry import collective_timeout_seconds, record
from trireme_trainer.rank.errors import NaNLoss, RestoreFailed, classify_exception

KEYS = JobKeys("s3://bucket/p", "default", "job", "uid")


def test_a_fence_falls_only_when_both_operator_and_gang_are_silent() -> None:
    fence = Fence(slots=2, now=0.0)
    fence.heard_gang(100.0)
    assert not fence.expired(120.0, 30.0)
    fence.heard_operator(140.0)
    assert not fence.expired(160.0, 30.0)
    assert fence.expired(170.0, 30.0)


def test_a_job_of_one_slot_is_never_fenced_by_itself() -> None:
    assert not Fence(slots=1, now=0.0).expired(1e9, 5.0)


@pytest.mark.parametrize(
    ("accelerator", "processors", "threads"), [("cpu", 96, "1"), ("h100-sxm", 96, "12"), ("h100-sxm", 4, "1")]
)
def test_ranks_beside_accelerators_share_the_processors_and_ranks_on_processors_have_one_each(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, processors: int, threads: str
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config = SimpleNamespace(plan={"accelerator": accelerator}, ranks_per_slot=8)
    environment = AgentEnvironment(cast(JobConfig, config), Path(), 0, "", "", "", "", 0, 0, Path())
    launcher = Launcher("pretrain", environment.threads_per_rank)
    assert launcher.environment()["OMP_NUM_THREADS"] == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert launcher.environment()["OMP_NUM_THREADS"] == "5"


@given(st.sampled_from([s for s in Section if s is not Section.DONE]), st.floats(1, 1e5), st.floats(1, 1e5))
def test_a_hang_is_named_long_before_a_collective_times_out(section: Section, step: float, start: float) -> None:
    """No collective is cut while the section that it belongs to may go on, a save in which ranks wait least of all."""
    settings = Settings(step_timeout_seconds=step, start_timeout_seconds=start)
    now = collective_timeout_seconds(settings) / 2 + 1
    rank = SimpleNamespace(rank=0, step=0, section=section, entered_at=0.0, end=None, silent_seconds=lambda _: 0.0)
    hang = HangWatch(now).look([cast(RankProcess, rank)], settings, now)
    assert hang is not None
    assert hang.kind is FailureKind.HANG


@given(st.lists(st.tuples(st.sampled_from(list(Section)), st.floats(0, 100)), max_size=30), st.integers(0, 20))
def test_categories_share_out_every_second_exactly_once(sections: list[tuple[Section, float]], until: int) -> None:
    clock, now = CategoryClock(0.0), 0.0
    for step, (section, seconds) in enumerate(sections):
        clock.enter(category_of(section, step, until), now)
        now += seconds
    clock.stop(now)
    assert sum(clock.totals(now + 1000).values()) == pytest.approx(now)


def test_steps_an_older_attempt_had_done_are_recompute() -> None:
    assert category_of(Section.STEP, 9, 10) == "recompute"
    assert category_of(Section.STEP, 10, 10) == "productive"
    assert category_of(Section.SAVE, 3, 10) == "checkpointStall"


def end(rank: int, code: int, at: float, kind: FailureKind | None = None) -> RankEnd:
    record = None
    if kind is not None:
        record = FailedEvent(kind=kind, step=5, exception="E", message="m", traceback_tail="t")
    return RankEnd(rank, 4, code, at, record)


def test_the_culprit_is_named_and_not_the_victim_that_ended_first() -> None:
    ends = [end(0, 1, 1.0, FailureKind.VICTIM), end(1, -9, 1.1), end(2, 0, 0.5)]
    cause = first_cause(ends, oom_kills=0)
    assert cause is not None
    assert (cause[0].kind, cause[0].rank, cause[0].signal) == (FailureKind.KILLED, 1, 9)


def test_a_kill_is_an_oom_kill_only_when_the_kernel_counted_one() -> None:
    for code in (-9, 137):
        cause = first_cause([end(0, code, 1.0)], oom_kills=1)
        assert cause is not None
        assert cause[0].kind is FailureKind.OOM_KILLED
    cause = first_cause([end(0, -9, 1.0)], oom_kills=0)
    assert cause is not None
    assert cause[0].kind is FailureKind.KILLED


@pytest.mark.parametrize(
    ("number", "said", "kind"),
    [
        (signal.SIGTERM, "", "Killed"),
        (signal.SIGHUP, "", "Killed"),
        (signal.SIGSEGV, "", "Crashed"),
        (signal.SIGFPE, "", "Crashed"),
        (signal.SIGABRT, "terminate called after throwing an instance of 'std::bad_alloc'", "Crashed"),
        (signal.SIGABRT, "Process group watchdog thread terminated with exception", "Victim"),
        (signal.SIGABRT, "watchdog thread: CUDA error: uncorrectable ECC error encountered", "DeviceFault"),
    ],
)
def test_a_crash_is_no_kill_from_outside(number: signal.Signals, said: str, kind: str) -> None:
    cause = first_cause([RankEnd(0, 4, -number, 1.0, last_words=said)], oom_kills=0)
    assert cause is not None
    assert (cause[0].kind, cause[0].signal, cause[0].step) == (FailureKind(kind), number, 4)
    assert said in cause[0].message


def test_an_exit_without_a_record_is_an_exit_and_clean_ends_are_no_failure() -> None:
    cause = first_cause([end(0, 3, 1.0)], oom_kills=0)
    assert cause is not None
    assert (cause[0].kind, cause[0].exit_code) == (FailureKind.EXIT, 3)
    assert first_cause([end(0, 0, 1.0), end(1, 75, 1.0)], oom_kills=0) is None


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.1]:99"), "Victim", 1),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "Exception", 1),
        (ValueError("connection closed by peer"), "Exception", 1),
        (NaNLoss("loss nan"), "NaNLoss", 77),
        (RestoreFailed("shard"), "RestoreFailed", 78),
        (MemoryError(), "Exception", 1),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "DeviceFault", 1),
        (RuntimeError("CUDA error: unspecified launch failure\\nCompile with TORCH_USE_CUDA_DSA"), "DeviceFault", 1),
        (DistBackendError("NCCL error ... Last error: Cuda failure 'an illegal instruction'"), "DeviceFault", 1),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "Exception", 1),
        (OSError(28, "No space left on device"), "LocalDiskFailed", 1),
        (FileNotFoundError(2, "No such file"), "Exception", 1),
    ],
)
def test_exceptions_are_told_apart(error: Exception, kind: str, code: int) -> None:
    assert classify_exception(error) == (FailureKind(kind), code)


def test_a_full_disk_does_not_stop_a_ranks_output(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    log = RankLog(tmp_path / "rank-3.log", 3)
    os.dup2(os.open("/dev/full", os.O_WRONLY), log._file.fileno())
    log.write(b"step 1\n")
    log.write(b"step 2\n")
    log.close()
    assert capfdbinary.readouterr().out == b"[rank 3] step 1\n[rank 3] step 2\n"


def test_a_rank_on_a_full_disk_still_says_how_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIREME_ERROR_FILE", str(tmp_path / "no" / "such" / "folder"))
    sent: list[FailedEvent] = []
    code = record(cast(RankChannel, SimpleNamespace(send=sent.append)), OSError(28, "No space left on device"), 7)
    assert (code, sent[0].kind, sent[0].step) == (1, FailureKind.LOCAL_DISK, 7)


NOW = datetime(2030, 1, 1, tzinfo=UTC)


def step(attempt: int, number: int, *, committed: bool = True, age_seconds: float = 10.0) -> StoredStep:
    sizes = {"shard": 1, **({"manifest.json": 1} if committed else {})}
    return StoredStep("uid", attempt, number, sizes, NOW - timedelta(seconds=age_seconds))


def inventory(*steps: StoredStep, resumes: dict[int, tuple[int, int] | None]) -> Inventory:
    def point(where: tuple[int, int] | None) -> ResumePoint | None:
        if where is None:
            return None
        uri = KEYS.to_uri(KEYS.step(*where))
        return ResumePoint(uri=uri, manifest_digest="sha256:0", attempt=where[0], step=where[1])

    records = {a: ResumeRecord(attempt=a, resume_from=point(w)) for a, w in resumes.items()}
    return Inventory(KEYS, {(s.attempt, s.step): s for s in steps}, records)


def names(steps: list[StoredStep]) -> list[tuple[int, int]]:
    return [(s.attempt, s.step) for s in steps]


def test_a_commit_that_arrived_after_its_writer_was_replaced_is_never_a_candidate() -> None:
    late = step(1, 30)
    found = inventory(step(1, 10), step(1, 20), late, step(2, 25), resumes={1: None, 2: (1, 20)})
    assert names(list(found.lineage())) == [(2, 25), (1, 20), (1, 10)]
    assert names(list(found.lineage(before_attempt=2))) == [(1, 30), (1, 20), (1, 10)]


def test_attempts_that_never_trained_do_not_break_the_lineage() -> None:
    found = inventory(step(1, 10), step(4, 20), resumes={1: None, 4: (1, 10)})
    assert names(list(found.lineage(before_attempt=9))) == [(4, 20), (1, 10)]


def test_a_lost_record_in_the_middle_keeps_what_was_resumed_from_it_and_stops_there() -> None:
    found = inventory(step(1, 10), step(2, 20), step(2, 30), step(3, 25), resumes={1: None, 3: (2, 20)})
    assert names(list(found.lineage())) == [(3, 25), (2, 20)]


def test_retention_keeps_what_nobody_can_place() -> None:
    found = inventory(step(1, 10, age_seconds=9000), step(2, 20), resumes={2: None})
    found.unplaced[1] = "RecordInvalid"
    assert select_deletions(found, attempt=2, keep=1, protected=[], now=NOW) == []


def test_retention_keeps_the_newest_and_the_verified_and_deletes_old_orphans_only() -> None:
    found = inventory(
        step(1, 10), step(1, 20), step(1, 30, age_seconds=9000), step(2, 25), step(2, 35), step(2, 45),
        step(1, 15, committed=False, age_seconds=9000), step(1, 16, committed=False),
        step(2, 55, committed=False, age_seconds=9000),
        resumes={1: None, 2: (1, 20)},
    )  # fmt: skip
    gone = select_deletions(found, attempt=2, keep=2, protected=[(1, 20)], now=NOW)
    assert sorted(names(gone)) == [(1, 10), (1, 15), (1, 30), (2, 25)]


@pytest.mark.parametrize("damaged", [False, True])
def test_a_replaced_writer_deletes_nothing(damaged: bool) -> None:
    found = inventory(step(1, 10), step(1, 20), step(2, 15), resumes={1: None, 2: (1, 10)})
    if damaged:
        del found.records[2]
        found.unplaced[2] = "RecordInvalid"
    assert select_deletions(found, attempt=1, keep=1, protected=[], now=NOW) == []


@given(
    keep=st.integers(1, 5),
    steps=st.lists(st.integers(1, 50), unique=True, max_size=12),
    ages=st.floats(0, 1e6),
)
def test_retention_never_deletes_the_newest_committed(keep: int, steps: list[int], ages: float) -> None:
    found = inventory(*(step(1, n, age_seconds=ages) for n in steps), resumes={1: None})
    gone = names(select_deletions(found, attempt=1, keep=keep, protected=[], now=NOW))
    kept = sorted(set(steps) - {n for _, n in gone})
    assert kept == sorted(steps)[-keep:]
