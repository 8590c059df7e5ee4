"""Pods that do not go, pods that never come up, and the nodes to blame for it."""

from sim_cluster import Node
from sim_scenario import Story

from trireme.resources.status import ConditionType, JobState


def test_a_pod_whose_kubelet_died_is_removed_by_force_once_its_agent_holds_still() -> None:
    story = Story()
    story.until_step(8)
    node, uid = story.agent(1).node, story.pod_uid(1)
    story.cluster.nodes[node].kubelet = False
    story.until_running(2)
    assert story.causes() == {"Preemption": 1}
    assert story.pod_uid(1) != uid
    assert story.agent(1).node != node
    story.until_ended()
    assert story.status.state == JobState.SUCCEEDED


def test_a_pod_that_outstays_its_grace_on_a_ready_node_is_removed_by_force_and_its_node_avoided() -> None:
    story = Story()
    story.until_step(8)
    node, uid = story.agent(1).node, story.pod_uid(1)
    story.cluster.nodes[node].kills = False
    story.cluster.delete_pod("j-1", None, None, None)
    story.until_running(2)
    assert story.pod_uid(1) != uid
    assert story.agent(1).node != node
    assert "PodStuck" in story.reasons()
    assert [r.node for r in story.status.gang.node_records if r.excluded] == [node]
    story.until_ended()
    assert story.status.state == JobState.SUCCEEDED


def test_suspending_does_not_wait_for_ever_for_a_pod_that_does_not_go() -> None:
    story = Story()
    story.until_step(8)
    story.cluster.nodes[story.agent(1).node].kills = False
    story.cluster.edit_job(suspend=True)
    story.until(lambda: story.condition(ConditionType.SUSPENDED).status == "True")
    assert story.cluster.pods == {}


def test_a_node_on_which_pods_never_come_up_is_blamed_and_avoided() -> None:
    story = Story(nodes=("n1", "n2"))
    story.cluster.nodes["n1"].starts = False
    story.run(5)
    story.cluster.nodes["n3"] = Node("n3", ready=False, seen=story.cluster.now)
    story.until_running(2)
    assert story.causes() == {"PodNotStarted": 1}
    assert story.status.failure is not None
    assert story.status.failure.node == "n1"
    assert [r.node for r in story.status.gang.node_records if r.excluded] == ["n1"]
    story.until_ended()
    assert story.status.state == JobState.SUCCEEDED


def test_an_image_that_no_pod_can_pull_blames_no_node() -> None:
    story = Story()
    for node in story.cluster.nodes.values():
        node.starts = False
    story.until(lambda: len(story.cluster.pods) == 2)
    story.run(2)
    for name in ("j-0", "j-1"):
        waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
        story.cluster.change_pod(name, status={"containerStatuses": [{"name": "trainer", "state": waiting}]})
    story.run(90)
    assert story.status.restarts.total == 0
    assert story.condition(ConditionType.INPUTS_READY).reason == "ImagePullFailed"
