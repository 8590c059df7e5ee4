"""No event of a stage is lost with the operator or the request that was to record it."""

from sim_scenario import Story

from trireme.protocol import FailureKind
from trireme.resources.status import GangPhase


def test_an_operator_that_ends_between_the_status_and_its_events_has_them_told_by_the_next() -> None:
    story = Story()
    story.until_step(10)
    story.cluster.store.commits[-1].good = False
    lost = story.operator.executor._events
    recorded = lost.record

    async def forgotten(*args: object) -> None:
        """The process ends here."""

    lost.record = forgotten  # type: ignore[assignment, method-assign]
    story.agent(1).fail(FailureKind.KILLED)
    story.until(lambda: story.status.gang.phase == GangPhase.RUNNING and story.status.gang.attempt == 2)
    lost.record = recorded  # type: ignore[method-assign]
    story.operator.start()
    story.run(2)
    rejected = story.status.checkpoint.rejected
    assert rejected is not None
    assert (rejected.step, rejected.reason, rejected.file, rejected.attempt) == (9, "DigestMismatch", "x", 2)
    for reason in ("AttemptRaised", "CheckpointRejected", "ResumePointRecorded"):
        assert any(r == reason and ("attempt 2" in m or rejected.uri in m) for r, m in story.events), reason
    told = len(story.events)
    story.run(1)
    assert len(story.events) - told <= 1, "each is told once"
