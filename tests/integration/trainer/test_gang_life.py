"""The life of a job as the agents see it: prepare, run, lose a rank, resume, succeed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from gang_harness import Gang, wait_for

from trireme.checkpoints import Manifest
from trireme.protocol import AgentState, FailureKind


def test_a_killed_rank_is_reported_and_the_next_attempt_finishes_the_job(make_gang: Callable[..., Gang]) -> None:
    gang = make_gang(training__steps=60)
    gang.start_all()
    first = gang.form()
    assert first.proposal is not None
    assert first.proposal.resume is None
    wait_for(lambda: gang.agents[0].report().checkpoint.last_committed, 120)
    gang.wait_step(22)

    os.kill(gang.agents[1].rank_pids()[0], signal.SIGKILL)
    reports = gang.wait_state(AgentState.FAILED, seconds=30)
    assert reports[1].failure is not None
    assert (reports[1].failure.kind, reports[1].failure.signal) == (FailureKind.KILLED, signal.SIGKILL)
    assert reports[0].failure is not None
    assert reports[0].failure.kind is FailureKind.VICTIM
    reached = reports[0].progress.step if reports[0].progress else 0

    second = gang.form(dataset=first.proposal.dataset)
    assert second.proposal is not None
    resume = second.proposal.resume
    assert resume is not None
    assert 10 <= resume.step <= reached
    assert resume.attempt == 1
    reports = gang.wait_state(AgentState.SUCCEEDED)
    progress, model = reports[0].progress, reports[0].model
    assert progress is not None
    assert progress.step == 60
    assert progress.first_loss is not None
    assert progress.loss is not None
    assert progress.loss < progress.first_loss
    assert progress.validation_loss is not None
    assert model is not None
    manifest = Manifest.decode((gang.job_directory / "model" / "a2" / "manifest.json").read_bytes())
    assert manifest.digest == model.digest
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {f.path for f in manifest.files}
    assert (manifest.state["validationStep"], manifest.state["validationLoss"]) == (60, progress.validation_loss)
    log = (gang.job_directory / "logs" / "a1" / "rank-0.log").read_text()
    assert "step 22/60" in log
    gang.release()


def test_ranks_are_plain_processes_where_none_can_be_forked(make_gang: Callable[..., Gang]) -> None:
    """The process that forks ranks is killed: its ranks go with it, and the next attempt does without."""
    gang = make_gang(workers__nodes=1, training__steps=100_000, checkpoint__intervalSteps=None)
    gang.start_all()
    gang.form()
    gang.wait_step(2)
    (rank,) = gang.agents[0].rank_pids()
    parent = int(Path(f"/proc/{rank}/stat").read_text().rsplit(")", 1)[1].split()[1])
    assert parent != gang.agents[0].process.pid
    os.kill(parent, signal.SIGKILL)
    failure = gang.wait_state(AgentState.FAILED, seconds=30)[0].failure
    assert failure is not None
    assert failure.kind is FailureKind.KILLED
    wait_for(lambda: not Path(f"/proc/{rank}").exists(), 10)
    gang.form()
    gang.wait_step(2)
    (rank,) = gang.agents[0].rank_pids()
    assert b"trireme_trainer.pretrain" in Path(f"/proc/{rank}/cmdline").read_bytes()
    gang.agents[0].process.kill()
    wait_for(lambda: not Path(f"/proc/{rank}").exists(), 10)
