"""What the agents do about hangs, lost contact, a store that goes away, and being asked to stop."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable

import pytest
from gang_harness import Gang, wait_for

from trireme.protocol import AgentState, FailureKind, Phase
from trireme.protocol.messages import DRAINED_EXIT_CODE

_STEP = re.compile(r"step (\d+)/\d+ loss (\S+) grad_norm (\S+) learning_rate (\S+) samples (\S+)")


def steps_in_log(gang: Gang, attempt: int) -> dict[int, tuple[float, float, float, str]]:
    text = (gang.job_directory / "logs" / f"a{attempt}" / "rank-0.log").read_text()
    return {int(m[1]): (float(m[2]), float(m[3]), float(m[4]), m[5]) for m in _STEP.finditer(text)}


def test_a_drained_and_resumed_run_equals_the_uninterrupted_one(make_gang: Callable[..., Gang]) -> None:
    """Fresh pods, from the store alone; tensor 2 over two slots."""
    changes = {"training__steps": 40, "parallelism": {"tensor": 1, "pipeline": 2, "data": 1}}
    whole = make_gang(name="whole", **changes)
    whole.start_all()
    whole.form()
    whole.wait_state(AgentState.SUCCEEDED)
    whole.release()

    parted = make_gang(name="parted", checkpoint__intervalSteps=1000, **changes)
    parted.start_all()
    prepared = parted.form()
    parted.wait_step(3)
    parted.put_all(parted.target(Phase.DRAIN, dataset=prepared.proposal and prepared.proposal.dataset))
    reports = parted.wait_state(AgentState.DRAINED, seconds=60)
    committed = reports[0].checkpoint.last_committed
    assert committed is not None
    assert reports[0].progress is not None
    assert committed.step == reports[0].progress.step
    for slot in range(2):
        parted.start(slot)
    second = parted.form(dataset=prepared.proposal and prepared.proposal.dataset)
    assert second.proposal is not None
    assert second.proposal.resume is not None
    assert second.proposal.resume.step == committed.step
    parted.wait_state(AgentState.SUCCEEDED)
    parted.release()

    expected, actual = steps_in_log(whole, 1), {**steps_in_log(parted, 1), **steps_in_log(parted, 2)}
    assert sorted(expected) == sorted(actual) == list(range(1, 41))
    for step, (*numbers, samples) in expected.items():
        assert actual[step][3] == samples
        assert actual[step][:3] == pytest.approx(numbers, abs=1e-5)


def test_a_stopped_rank_is_named_as_the_hang_and_its_peer_is_not(make_gang: Callable[..., Gang]) -> None:
    gang = make_gang(training__steps=100_000)
    gang.settings = gang.settings.model_copy(update={"step_timeout_seconds": 6.0})
    gang.start_all()
    gang.form()
    gang.wait_step(3)
    os.kill(gang.agents[1].rank_pids()[0], signal.SIGSTOP)
    failure = wait_for(lambda: gang.agents[1].report().failure, 40)
    assert failure.kind is FailureKind.HANG
    assert failure.rank == 1
    assert "the process is stopped" in failure.message
    assert gang.agents[1].report().ranks_alive == 0
    other = gang.wait_state(AgentState.FAILED, seconds=30)[0].failure
    assert other is not None
    assert other.kind is FailureKind.VICTIM


def test_ranks_stop_when_neither_operator_nor_leader_is_heard_but_not_for_the_operator_alone(
    make_gang: Callable[..., Gang],
) -> None:
    gang = make_gang(training__steps=100_000)
    gang.settings = gang.settings.model_copy(update={"fence_seconds": 5.0})
    gang.start_all()
    gang.form()
    step = gang.wait_step(3).progress
    time.sleep(8)  # no operator, twice the agents' patience
    reports = gang.reports()
    assert [r.state for r in reports] == [AgentState.RUNNING] * 2
    assert reports[0].progress is not None
    assert step is not None
    assert reports[0].progress.step > step.step
    pid = gang.agents[1].rank_pids()[0]
    os.kill(gang.agents[0].process.pid, signal.SIGSTOP)
    try:
        wait_for(lambda: not os.path.exists(f"/proc/{pid}"), 40)  # noqa: PTH110
    finally:
        os.kill(gang.agents[0].process.pid, signal.SIGCONT)
    failure = gang.agents[1].report().failure
    assert failure is not None
    assert failure.kind is FailureKind.FENCED


def test_training_goes_on_while_the_store_is_away_and_saves_recover(make_gang: Callable[..., Gang]) -> None:
    gang = make_gang(training__steps=100_000, checkpoint__intervalSteps=20, workers__nodes=1)
    gang.start_all()
    gang.form()
    first = wait_for(lambda: gang.agents[0].report().checkpoint.last_committed, 60)
    gang.server.stop()
    failing = wait_for(lambda: (r := gang.agents[0].report()).checkpoint.failing_reason and r, 90)
    assert failing.checkpoint.failing_reason == "StoreUnavailable"
    before = failing.progress.step
    gang.wait_step(before + 20)
    gang.server.start()
    later = wait_for(lambda: (c := gang.agents[0].report().checkpoint).failing_reason is None and c.last_committed, 90)
    assert later.step > first.step
    assert gang.agents[0].report().state is AgentState.RUNNING


def test_a_pod_asked_to_end_drains_the_whole_gang_even_without_the_operator(make_gang: Callable[..., Gang]) -> None:
    gang = make_gang(training__steps=100_000, checkpoint__intervalSteps=None)
    gang.start_all()
    gang.form()
    gang.wait_step(3)
    leaving = gang.agents[1]
    leaving.process.terminate()
    wait_for(lambda: leaving.report().terminating, 10)
    assert leaving.process.wait(60) == DRAINED_EXIT_CODE
    del gang.agents[1]
    report = wait_for(lambda: (r := gang.agents[0].report()).state is AgentState.DRAINED and r, 30)
    assert report.checkpoint.last_committed.step == report.progress.step


def test_an_exception_is_reported_with_its_type_message_and_traceback(make_gang: Callable[..., Gang]) -> None:
    gang = make_gang(workers__nodes=1)
    gang.config = gang.config.model_copy(update={"plan": {**gang.config.plan, "microBatchSize": 3}})
    gang.start_all()
    gang.form()
    failure = gang.wait_state(AgentState.FAILED, seconds=90)[0].failure
    assert failure is not None
    assert (failure.kind, failure.rank, failure.exit_code) == (FailureKind.EXCEPTION, 0, 1)
    assert failure.exception == "EngineConfigError"
    assert "3" in failure.message
    assert "Traceback" in failure.traceback_tail
