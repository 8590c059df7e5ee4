"""How often a job's status is written: at once when it matters, seldom when only details change, else not at all."""

from itertools import pairwise
from typing import Any

from sim_cluster import Node
from sim_scenario import Story

from trireme.resources.status import ConditionType


def count_writes(story: Story) -> list[float]:
    """The times of the status writes from now on."""
    times: list[float] = []
    original = story.cluster.put_status

    def counted(body: dict[str, Any]) -> dict[str, Any]:
        times.append(story.cluster.now)
        return original(body)

    story.cluster.put_status = counted  # type: ignore[method-assign]
    return times


def test_a_job_that_waits_says_what_it_finds_now() -> None:
    story = Story(nodes=())
    story.until(lambda: "2 nodes with enough free resources needed, 0 found" in message(story))
    story.cluster.nodes["n1"] = Node("n1", seen=story.cluster.now)
    story.cluster.nodes["n1"].ready = False
    story.run(15)
    assert "2 nodes with enough free resources needed, 1 found" in message(story)
    assert abs(story.status.time.seconds.queued + seconds_open(story) - (story.cluster.now - 1_000_000.0)) < 1.0


def test_details_that_change_all_the_time_are_written_every_ten_seconds() -> None:
    story = Story(nodes=("n1",))
    story.run(3)
    times = count_writes(story)
    for second in range(30):
        if second % 2:
            story.cluster.nodes["n1"].ready = False
            story.cluster.announce("MODIFIED", story.cluster.node_raw(story.cluster.nodes["n1"]))
        story.run()
    assert 2 <= len(times) <= 4
    assert all(b - a >= 10.0 for a, b in pairwise(times))


def test_the_age_of_the_last_checkpoint_calls_for_no_write() -> None:
    story = Story(nodes=("n1", "n2"))
    story.until_step(8)
    story.kill_node_of(1)
    story.until(lambda: story.condition(ConditionType.SCHEDULED).reason == "NoReplacementNode")
    status = story.cluster.job["status"]
    failing = {**status["checkpoint"], "failingReason": "StoreUnavailable"}
    story.cluster.job = {**story.cluster.job, "status": {**status, "checkpoint": failing}}
    story.cluster.edit_job()
    story.run(12)
    assert "s old" in story.condition(ConditionType.CHECKPOINT_HEALTHY).message
    times = count_writes(story)
    story.run(15)
    assert times == []


def test_a_finished_job_is_not_written_again() -> None:
    story = Story()
    story.until_ended()
    story.run(3)
    times = count_writes(story)
    story.run(30)
    assert times == []


def message(story: Story) -> str:
    found = story.status.condition(ConditionType.SCHEDULED)
    return found.message if found else ""


def seconds_open(story: Story) -> float:
    assert story.status.time.open is not None
    return story.cluster.now - story.status.time.open.since.timestamp()
