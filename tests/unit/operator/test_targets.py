"""What agents are told of the newest checkpoint that is known to be good."""

from dataclasses import replace

import pytest
from sim_operator import KEY, KIND
from sim_scenario import Story

from trireme.resources.status import GangPhase
from trireme_operator.decide import situation
from trireme_operator.decide.targets import target


@pytest.mark.parametrize(
    ("uid", "attempt", "told"),
    [("job-1", 1, True), ("job-1", 2, False), ("job-0", 2, True), ("job-0", 7, True)],
)
def test_the_attempt_of_an_earlier_jobs_checkpoint_is_not_compared_with_ours(
    uid: str, attempt: int, told: bool
) -> None:
    story = Story()
    story.until_phase(GangPhase.PREPARING)
    observed = story.operator.world.observe(KEY)
    assert observed is not None
    status = observed.job.status
    place = f"s3://b/{uid}/a{attempt}/step-30"
    saved = {"step": 30, "uri": place, "manifest_digest": "sha256:x", "attempt": attempt}
    known = status.model_copy(
        update={
            "gang": status.gang.model_copy(update={"attempt": 2}),
            "checkpoint": status.checkpoint.model_copy(update=saved),
        }
    )
    s = situation(replace(observed, job=replace(observed.job, status=known)), KIND)
    assert s is not None
    wanted = target(s)
    assert wanted is not None
    assert (wanted.verified.uri if wanted.verified else None) == (place if told else None)
