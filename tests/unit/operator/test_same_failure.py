"""When a failure is the same as the one before, so that another try would end like it."""

from gang_machine import SPEC
from sim_scenario import Story

from trireme.protocol import FailureKind
from trireme.resources.status import ConditionType, JobState


def test_the_same_exception_at_the_same_step_twice_ends_the_job() -> None:
    story = Story()
    story.cluster.gang.deterministic_failure_at = 10
    story.until_ended()
    failed = story.condition(ConditionType.FAILED)
    assert (failed.status, failed.reason) == ("True", "DeterministicFailure")
    assert story.status.restarts.total == 1
    assert story.status.failure is not None
    assert story.status.failure.exception == "ValueError"


def test_a_collective_library_that_refuses_every_slot_at_the_start_is_no_lost_peer() -> None:
    story = Story()
    for attempt in (1, 2):
        story.until_running(attempt)
        story.until(lambda: all(story.agent(slot).ranks_of for slot in (0, 1)))
        for slot in (0, 1):
            story.agent(slot).fail(FailureKind.VICTIM, "DistBackendError", "NCCL error: no socket interface", step=0)
        story.run(3)
    story.until_ended()
    assert story.condition(ConditionType.FAILED).reason == "DeterministicFailure"
    assert story.causes() == {"Exception": 1}


def test_a_connection_lost_at_the_start_is_a_lost_peer() -> None:
    story = Story()
    story.until_running(1)
    story.until(lambda: all(story.agent(slot).ranks_of for slot in (0, 1)))
    for slot in (0, 1):
        story.agent(slot).fail(FailureKind.VICTIM, "DistBackendError", "Connection reset by peer", step=0)
    story.until_running(2)
    assert story.causes() == {"PeerLost": 1}


def test_the_same_crash_at_the_same_step_twice_ends_the_job() -> None:
    story = Story()
    for attempt in (1, 2):
        story.until_running(attempt)
        story.until(lambda: story.agent(1).ranks_of)
        story.agent(1).fail(FailureKind.CRASHED, None, "crashed with SIGSEGV", step=9)
        story.run(3)
    story.until_ended()
    assert story.condition(ConditionType.FAILED).reason == "DeterministicFailure"
    assert story.causes() == {"RankCrashed": 1}


def fail_restore(story: Story, attempt: int, exception: str | None, message: str) -> None:
    story.until_running(attempt)
    story.until(lambda: story.agent(1).ranks_of)
    story.agent(1).fail(FailureKind.RESTORE, exception, message, step=0)
    story.run(3)


def test_the_same_failure_to_restore_twice_ends_the_job() -> None:
    story = Story()
    for attempt, size in ((1, 32), (2, 64)):
        fail_restore(story, attempt, "RestoreFailed", f"tensor w is stored as ({size}, 32)")
    story.until_ended()
    assert story.condition(ConditionType.FAILED).reason == "DeterministicFailure"
    assert story.status.restarts.infrastructure == 1


def test_a_store_that_is_away_while_inputs_are_fetched_never_ends_the_job() -> None:
    story = Story()
    for attempt in (1, 2, 3):
        fail_restore(story, attempt, None, "StoreUnavailable: no answer")
    story.until_ended()
    assert story.status.state == JobState.SUCCEEDED
    assert story.causes() == {"RestoreFailed": 3}


def test_failing_to_restore_another_checkpoint_is_another_failure() -> None:
    story = Story()
    fail_restore(story, 1, "RestoreFailed", "another rank found a file that does not verify")
    story.until_running(2)
    story.until_step(8)
    story.agent(1).fail(FailureKind.KILLED)
    fail_restore(story, 3, "RestoreFailed", "another rank found a file that does not verify")
    story.until_ended()
    assert story.status.state == JobState.SUCCEEDED


def test_the_same_exception_counts_as_the_same_only_in_attempts_that_follow_each_other() -> None:
    story = Story(faultTolerance={**SPEC["faultTolerance"], "budgets": {"application": 9}})
    for attempt, kind in enumerate((FailureKind.EXCEPTION, FailureKind.KILLED, FailureKind.EXCEPTION), start=1):
        story.until_running(attempt)
        story.until(lambda: story.agent(1).ranks_of)
        story.agent(1).fail(kind, "ConnectionError", "no route", step=0)
        story.run(3)
    story.until_running(4)
    assert story.causes() == {"Exception": 2, "RankKilled": 1}
