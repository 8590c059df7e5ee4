"""When a failure is the same as the one before, so that another try would end like it."""

from gang_machine import SPEC
from sim_scenario import Story

from trireme.protocol import FailureKind
from trireme.resources.status import ConditionType, GangPhase, JobState


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


def fail_rank(
    story: Story, attempt: int, kind: FailureKind, message: str = "no route", *, step: int = 0, trained: int = 0
) -> None:
    """In this attempt a rank ends, after `trained` steps."""
    story.until(lambda: (story.status.gang.attempt, story.status.gang.phase) == (attempt, GangPhase.PREPARING))
    story.agent(1).hung = trained == 0
    story.until(lambda: story.agent(1).ranks_of == attempt)
    start = story.cluster.gang.progress.step
    story.until_step(start + trained)
    story.agent(1).fail(kind, "ConnectionError" if kind == FailureKind.EXCEPTION else None, message, step=step)


def story_of_many() -> Story:
    return Story(faultTolerance={**SPEC["faultTolerance"], "budgets": {"application": 9, "outOfMemory": 9}})


def test_a_fault_of_the_infrastructure_between_does_not_make_another_failure_of_it() -> None:
    story = story_of_many()
    fail_rank(story, 1, FailureKind.EXCEPTION, step=20, trained=5)
    fail_rank(story, 2, FailureKind.KILLED, trained=2)
    story.until_running(3)
    story.cluster.delete_pod("j-1", None, None, None)
    fail_rank(story, 4, FailureKind.EXCEPTION, step=20, trained=2)
    story.until_ended()
    assert story.condition(ConditionType.FAILED).reason == "DeterministicFailure"
    assert story.causes() == {"Exception": 1, "RankKilled": 1, "Preemption": 1}


def test_a_failure_whose_step_was_passed_in_between_is_another() -> None:
    story = story_of_many()
    fail_rank(story, 1, FailureKind.EXCEPTION, step=4, trained=3)
    fail_rank(story, 2, FailureKind.KILLED, trained=4)
    fail_rank(story, 3, FailureKind.EXCEPTION, step=4)
    story.until_running(4)
    assert story.causes() == {"Exception": 2, "RankKilled": 1}


def test_a_failure_at_the_start_is_another_once_an_attempt_has_trained() -> None:
    story = story_of_many()
    fail_rank(story, 1, FailureKind.EXCEPTION)
    fail_rank(story, 2, FailureKind.KILLED, trained=1)
    fail_rank(story, 3, FailureKind.EXCEPTION)
    fail_rank(story, 4, FailureKind.KILLED)
    fail_rank(story, 5, FailureKind.EXCEPTION)
    story.until_ended()
    assert story.condition(ConditionType.FAILED).reason == "DeterministicFailure"
    assert story.causes() == {"Exception": 2, "RankKilled": 2}


def test_another_fault_of_the_application_between_makes_another_failure_of_it() -> None:
    story = story_of_many()
    fail_rank(story, 1, FailureKind.EXCEPTION)
    fail_rank(story, 2, FailureKind.OOM_KILLED)
    fail_rank(story, 3, FailureKind.EXCEPTION)
    story.until_running(4)


def test_numbers_ids_and_paths_in_a_message_do_not_make_another_failure_of_it() -> None:
    story = story_of_many()
    fail_rank(story, 1, FailureKind.EXCEPTION, "/tmp/tmpabc/x.bin of 3f2a-beef-77aa at 0x7f12 is cut off at byte 12")
    fail_rank(story, 2, FailureKind.EXCEPTION, "/tmp/tmpxyz/y.bin of c4d5-feed-8b8b at 0x7abc is cut off at byte 9")
    story.until_ended()
    assert story.condition(ConditionType.FAILED).reason == "DeterministicFailure"


def test_another_message_is_another_failure() -> None:
    story = story_of_many()
    fail_rank(story, 1, FailureKind.EXCEPTION, "no route to host")
    fail_rank(story, 2, FailureKind.EXCEPTION, "no such file")
    story.until_running(3)
