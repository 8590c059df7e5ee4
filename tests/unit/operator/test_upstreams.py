"""A job that starts from another one's model waits for it without taking any room, and remembers which model it was."""

import json

from gang_machine import AFTER_ANOTHER
from sim_operator import KIND
from sim_scenario import Story

from trireme.resources.status import Category, ConditionType, GangPhase, JobState
from trireme_operator.decide.kinds import Refused, admit

MODEL = AFTER_ANOTHER["model"]


def waits_for(story: Story) -> tuple[str, str]:
    """Reason and message of InputsReady, which is False."""
    found = story.condition(ConditionType.INPUTS_READY)
    assert found.status == "False"
    return found.reason, found.message


def test_a_job_waits_for_the_model_of_another_and_then_trains_from_it() -> None:
    story = Story(model=MODEL)
    story.run(3)
    where = "spec.model.startFromJob: PretrainJob/up"
    assert waits_for(story) == ("WaitingForUpstream", f"{where} does not exist yet")
    assert story.condition(ConditionType.SCHEDULED).reason == "WaitingForInputs"
    assert story.status.state == JobState.QUEUED
    story.cluster.set_upstream("Running")
    story.run(100)
    assert waits_for(story) == ("WaitingForUpstream", f"{where} is Running")
    assert story.cluster.pods == {}, "also long after the scheduling timeout: it waits for a model and not for room"
    assert story.status.time.open is not None
    assert story.status.time.open.category == Category.QUEUED
    story.cluster.set_upstream("Succeeded")
    story.until_running(1)
    (known,) = story.status.inputs
    assert (known.kind, known.name, known.uid) == ("PretrainJob", "up", "up-1")
    assert (known.uri, known.digest) == ("s3://bucket/up-1/model", "sha256:up-1")
    assert "InputRecorded" in story.reasons()
    config = json.loads(story.cluster.config_maps[-1]["data"]["job.json"])
    assert config["inputs"] == {"model.startFromJob": {"uri": "s3://bucket/up-1/model", "digest": "sha256:up-1"}}
    story.until_ended()
    assert story.status.state == JobState.SUCCEEDED


def test_once_the_model_is_recorded_its_job_may_go_or_be_created_anew() -> None:
    story = Story(nodes=(), model=MODEL)
    story.cluster.set_upstream("Succeeded")
    story.run(2)
    story.until(lambda: story.condition(ConditionType.SCHEDULED).reason == "InsufficientCapacity")
    recorded = story.status.inputs
    for change in (story.cluster.delete_upstream, lambda: story.cluster.set_upstream("Succeeded", "up-2")):
        change()
        story.run(15)
        assert story.status.inputs == recorded
        assert story.condition(ConditionType.SCHEDULED).reason == "InsufficientCapacity"


def test_an_upstream_that_failed_or_was_deleted_is_named_and_its_successor_waited_for() -> None:
    story = Story(model=MODEL)
    story.cluster.set_upstream("Failed")
    story.run(15)
    reason, message = waits_for(story)
    assert reason == "UpstreamFailed"
    assert "NaNLoss: loss nan at step 7" in message
    story.cluster.delete_upstream()
    story.run(15)
    assert waits_for(story)[0] == "UpstreamDeleted"
    writes = story.cluster.job["metadata"]["resourceVersion"]
    story.run(60)
    assert story.cluster.job["metadata"]["resourceVersion"] == writes, "nothing changes, so nothing is written"
    story.cluster.set_upstream("Running", "up-2")
    story.run(15)
    assert waits_for(story)[0] == "WaitingForUpstream"
    assert [known.uid for known in story.status.inputs] == ["up-2"]
    story.cluster.set_upstream("Succeeded", "up-2")
    story.until_running(1)


def test_the_deadline_does_not_count_how_long_another_job_takes() -> None:
    story = Story(model=MODEL, activeDeadlineSeconds=60)
    story.run(100)
    story.cluster.set_upstream("Succeeded")
    story.until_ended()
    assert story.status.state == JobState.SUCCEEDED


def test_a_job_that_waits_for_a_model_claims_no_room() -> None:
    """Else the job that makes the model could wait for the one that needs it, for ever."""
    story = Story(model=MODEL)
    story.run(5)
    assert story.status.gang.phase == GangPhase.WAITING
    story.cluster.set_upstream("Running")
    world = story.operator.world
    assert world._claims("up-1") == ()
    story.cluster.set_upstream("Succeeded")
    for node in story.cluster.nodes.values():
        node.ready = False
    story.run(2)
    assert [claim.uid for claim in world._claims("up-1")] == ["job-1"]


def test_a_suspended_job_records_nothing_and_takes_nothing() -> None:
    story = Story(model=MODEL, suspend=True)
    story.cluster.set_upstream("Succeeded")
    story.run(10)
    assert story.status.state == JobState.SUSPENDED
    story.cluster.edit_job(suspend=False)
    story.until_running(1)


def test_a_job_that_names_itself_is_refused() -> None:
    verdict = admit(KIND, "up", AFTER_ANOTHER)
    assert isinstance(verdict, Refused)
    assert verdict.message == "spec.model.startFromJob: PretrainJob/up is this job itself"
