"""Preemption, queues and autoscalers see pods that wait; nobody is held up by half a gang."""

from typing import Any

import pytest
from gang_machine import SPEC
from sim_cluster import Node
from sim_scenario import Story

from trireme.resources.status import ConditionType, GangPhase, JobState


def test_a_gang_that_has_waited_long_shows_all_its_pods_and_gives_them_back_together() -> None:
    story = Story(nodes=("n1",))
    story.run(2)
    story.until(lambda: story.condition(ConditionType.SCHEDULED).reason == "InsufficientCapacity")
    story.run(35)
    assert story.cluster.pods == {}
    story.until(lambda: len(story.cluster.pods) == 2, 10)
    story.until(lambda: story.status.gang.phase == GangPhase.WAITING and not story.cluster.pods, 60)
    assert "SchedulingTimeout" in story.reasons()
    story.run(10)
    assert story.cluster.pods == {}
    story.cluster.nodes["n2"] = Node("n2", ready=False, seen=story.cluster.now)
    story.until_ended()
    assert story.status.state == JobState.SUCCEEDED


def test_an_autoscaler_brings_nodes_for_the_pods_that_wait() -> None:
    story = Story(nodes=("n1",))
    story.until(lambda: len(story.cluster.pods) == 2, 60)
    story.run(5)
    story.cluster.nodes["n2"] = Node("n2", ready=False, seen=story.cluster.now)
    story.until_running(1)


@pytest.mark.parametrize(
    "workers",
    [
        {"priorityClassName": "high"},
        {"schedulerName": "volcano"},
        {"labels": {"kueue.x-k8s.io/queue-name": "team"}},
    ],
)
def test_a_job_with_a_priority_a_scheduler_or_a_queue_shows_its_pods_at_once(workers: dict[str, Any]) -> None:
    story = Story(nodes=("n1",), workers={**SPEC["workers"], **workers})
    story.until(lambda: len(story.cluster.pods) == 2, 5)


def test_pods_that_a_queue_holds_are_not_given_back_until_it_has_let_them_go() -> None:
    story = Story(nodes=("n1", "n2"))
    story.cluster.gates = ("kueue.x-k8s.io/admission",)
    story.until(lambda: len(story.cluster.pods) == 2, 5)
    pods = [story.pod_uid(slot) for slot in (0, 1)]
    story.run(100)
    scheduled = story.condition(ConditionType.SCHEDULED)
    assert (scheduled.reason, scheduled.message) == (
        "SchedulingGated",
        "2 of 2 pods are held by kueue.x-k8s.io/admission",
    )
    for node in story.cluster.nodes.values():
        node.cut = True
    story.run(10)
    story.cluster.open_gates()
    story.run(35)
    assert [story.pod_uid(slot) for slot in (0, 1)] == pods
    assert "SchedulingTimeout" not in story.reasons()
    story.until(lambda: "SchedulingTimeout" in story.reasons(), 10)


def test_the_default_scheduler_by_name_changes_nothing() -> None:
    story = Story(nodes=("n1",), workers={**SPEC["workers"], "schedulerName": "default-scheduler"})
    story.run(10)
    assert story.cluster.pods == {}
