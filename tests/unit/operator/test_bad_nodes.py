"""Pods that do not go, pods that never come up, and the nodes to blame for it."""

from gang_machine import NODES, SPEC
from sim_cluster import Node
from sim_scenario import Story

from trireme.protocol import FailureKind
from trireme.resources import job_kind_named
from trireme.resources.status import ConditionType, GangPhase, JobState
from trireme_operator.decide import Policy
from trireme_operator.decide.exclusion import excluded, noted

POLICY = Policy()
SPEC_OBJECT = job_kind_named("PretrainJob").parse(SPEC)


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


def test_a_pod_that_nobody_ends_is_asked_to_leave_so_that_a_suspended_job_goes_on() -> None:
    """The attempt was raised and the job suspended before the agents heard of it; the kubelet is dead."""
    story = Story()
    story.until_step(8)
    node = story.agent(1).node
    story.cluster.nodes[node].kubelet = False
    story.agent(0).fail(FailureKind.KILLED)
    story.operator.poll()
    while story.status.gang.phase != GangPhase.FENCING:
        story.operator.reconcile()
    target = story.agent(1).target
    assert target is not None
    assert target.attempt == 1, "it has not heard of the attempt"
    story.cluster.edit_job(suspend=True)
    story.until(lambda: story.condition(ConditionType.SUSPENDED).status == "True")
    assert not story.cluster.gang.executing()
    story.cluster.edit_job(suspend=False)
    story.until_ended()
    assert story.status.state == JobState.SUCCEEDED


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


def refuse_to_start(story: Story, *slots: int) -> None:
    """The container runtime of their nodes cannot start the containers of these slots."""
    message = "failed to create shim task: OCI runtime create failed: nvidia-container-cli: driver error"
    ended = {"terminated": {"exitCode": 128, "reason": "StartError", "message": message}}
    for slot in slots:
        statuses = [{"name": "trainer", "state": ended}]
        story.cluster.change_pod(f"j-{slot}", status={"phase": "Failed", "containerStatuses": statuses})


def test_a_container_that_its_node_cannot_start_blames_the_node_and_not_the_program() -> None:
    story = Story()
    for node in story.cluster.nodes.values():
        node.starts = False
    story.until(lambda: all(pod["spec"].get("nodeName") for pod in story.cluster.pods.values()) and story.cluster.pods)
    bad = story.cluster.pods["j-1"]["spec"]["nodeName"]
    refuse_to_start(story, 1)
    story.run(5)
    assert story.status.gang.attempt == 1, "whether the other one starts is not known yet"
    for node in story.cluster.nodes.values():
        node.starts = True
    story.until_running(2)
    assert story.causes() == {"PodNotStarted": 1}
    assert (story.status.restarts.application, story.status.restarts.infrastructure) == (0, 1)
    assert story.status.failure is not None
    assert story.status.failure.node == bad
    assert "nvidia-container-cli: driver error" in story.status.failure.message
    assert [r.node for r in story.status.gang.node_records if r.excluded] == [bad]


def test_a_container_that_no_node_can_start_blames_no_node() -> None:
    story = Story()
    for node in story.cluster.nodes.values():
        node.starts = False
    for attempt in (1, 2):
        story.until(lambda: len([p for p in story.cluster.pods.values() if p["spec"].get("nodeName")]) == 2)
        assert story.status.gang.attempt == attempt
        refuse_to_start(story, 0, 1)
        story.run(5)
    story.until_ended()
    failed = story.condition(ConditionType.FAILED)
    assert failed.reason == "ApplicationBudgetExhausted"
    assert "could not be started on any node: StartError: failed to create shim task" in failed.message
    assert story.status.gang.node_records == []


def _killed_on_one_node(story: Story, times: int) -> str:
    for attempt in range(1, times + 1):
        story.until_running(attempt)
        story.until(lambda: story.agent(1).ranks_of)
        story.run(3)
        node = story.agent(1).node
        story.agent(1).fail(FailureKind.KILLED)
        story.run(2)
    return node


def test_a_bad_node_is_used_again_where_the_gang_does_not_fit_without_it() -> None:
    story = Story(nodes=("n1", "n2"))
    node = _killed_on_one_node(story, 3)
    story.until_running(4)
    assert story.agent(1).node == node
    assert [r.node for r in story.status.gang.node_records if r.excluded] == [node]


def test_faults_of_more_than_an_hour_ago_do_not_exclude_a_node() -> None:
    records = noted([], "n1", "Killed", 1000.0, POLICY)
    records = noted(records, "n1", "Killed", 2000.0, POLICY)
    late = noted(records, "n1", "Killed", 2000.0 + POLICY.exclusion_seconds, POLICY)
    assert (late[0].failures, late[0].excluded) == (1, False)
    soon = noted(records, "n1", "Killed", 3000.0, POLICY)
    assert soon[0].excluded
    assert excluded(soon, None, SPEC_OBJECT, {}, 2, 3001.0, POLICY) == ("n1",)
    assert excluded(soon, None, SPEC_OBJECT, {}, 2, 3000.0 + POLICY.exclusion_seconds, POLICY) == ()


def test_a_job_that_lacks_room_names_the_nodes_that_it_is_kept_off() -> None:
    story = Story()
    _killed_on_one_node(story, 2)
    node, kept = story.agent(1).node, story.agent(0).node
    container = {"name": "c", "resources": {"requests": {"cpu": "4"}}}
    for name in set(NODES) - {node, kept}:
        pod = {
            "kind": "Pod",
            "metadata": {"name": "x", "namespace": "default", "uid": "x", "resourceVersion": story.cluster.bump()},
            "spec": {"nodeName": name, "containers": [container]},
        }
        story.cluster.announce("ADDED", pod)
    story.until_running(3)
    story.until(lambda: story.agent(1).ranks_of)
    story.agent(1).fail(FailureKind.KILLED)
    story.until(lambda: f"kept off {node}" in story.condition(ConditionType.SCHEDULED).message)


def test_a_job_that_runs_out_of_memory_blames_no_node() -> None:
    story = Story()
    story.until_step(5)
    story.agent(1).fail(FailureKind.OOM_KILLED)
    story.until_running(2)
    assert story.status.gang.node_records == []


def test_a_hang_of_the_whole_gang_blames_no_node() -> None:
    story = Story()
    story.until_step(5)
    story.agent(0).hung = story.agent(1).hung = True
    story.until_running(2)
    assert story.causes() == {"Hang": 1}
    assert story.status.gang.node_records == []
