"""What a job waits for, and why it failed, are told with their reasons and only as long as they hold."""

from sim_cluster import Node
from sim_scenario import Story

from trireme.metrics import exposition
from trireme.protocol.messages import FailureKind
from trireme_operator.collectors import FleetCollector
from trireme_operator.services.model import ServicePolicy
from trireme_operator.services.observe import ServiceWorld

JOB = 'job_name="j",kind="PretrainJob",namespace="default"'


def reasons(story: Story, name: str) -> dict[str, float]:
    """Value of each series of a metric that has a job and a reason, by its reason."""
    story.operator.deliver()
    services = ServiceWorld(story.operator.world, {}, ServicePolicy())
    lines = exposition(FleetCollector(story.operator.world, services, lambda: True).collect()).decode().splitlines()
    begin = f'{name}{{{JOB},reason="'
    found = (line.removeprefix(begin).split('"} ') for line in lines if line.startswith(begin))
    return {reason: float(value) for reason, value in found}


def test_a_job_without_room_waits_and_one_that_runs_does_not() -> None:
    story = Story(nodes=("n1",))
    story.run(5)
    assert reasons(story, "trireme_job_waiting") == {"InsufficientCapacity": 1}
    story.cluster.nodes["n2"] = Node("n2", seen=story.cluster.now)
    story.until_running(1)
    assert reasons(story, "trireme_job_waiting") == {}


def test_a_suspended_job_waits_for_nothing() -> None:
    story = Story(suspend=True)
    story.run(5)
    assert story.status.state == "Suspended"
    assert reasons(story, "trireme_job_waiting") == {}


def test_a_job_that_failed_tells_why_and_waits_for_nothing() -> None:
    story = Story()
    story.until_step(3)
    assert reasons(story, "trireme_job_failed") == {}
    story.agent(1).fail(FailureKind.NAN_LOSS, message="loss is nan")
    story.until_ended()
    assert reasons(story, "trireme_job_failed") == {"NaNLoss": 1}
    assert reasons(story, "trireme_job_waiting") == {}
