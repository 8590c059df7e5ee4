"""Pods that are ended and jobs that are suspended: ranks save first, nobody is charged, and what is lost is said."""

from sim_scenario import Story

from trireme.resources.status import ConditionType, JobState


def test_a_drained_pod_saves_first_and_is_charged_to_nobody() -> None:
    story = Story()
    story.until_step(8)
    story.cluster.delete_pod("j-1", None, None, None)
    story.until_running(2)
    assert story.causes() == {"Preemption": 1}
    restarts = story.status.restarts
    assert (restarts.application, restarts.infrastructure, restarts.out_of_memory, restarts.hang) == (0, 0, 0, 0)
    assert (restarts.total, restarts.fruitless) == (0, 0), "it is no fault"
    resume, record = story.status.gang.resume_from, restarts.history[-1]
    assert resume is not None
    assert resume.step >= record.step, "no step was lost"


def test_a_gang_that_was_drained_whole_and_finds_no_nodes_lacks_a_replacement() -> None:
    story = Story(nodes=("n1", "n2"))
    story.until_step(8)
    for node in story.cluster.nodes.values():
        node.starts = False
    for name in ("j-0", "j-1"):
        story.cluster.delete_pod(name, None, None, None)
    story.until(lambda: story.status.gang.attempt == 2)
    for node in story.cluster.nodes.values():
        node.kubelet = False
    story.until(lambda: story.condition(ConditionType.SCHEDULED).reason == "NoReplacementNode")
    assert story.status.restarts.total == 0


def test_a_drained_pod_that_ends_first_leaves_slot_0_time_to_commit() -> None:
    story = Story()
    story.until_step(8)
    story.cluster.gang.upload_seconds = 6.0
    saved = story.cluster.gang.progress.step
    story.cluster.delete_pod("j-1", None, None, None)
    story.until_running(2)
    assert story.causes() == {"Preemption": 1}
    assert story.status.restarts.application == 0
    resume = story.status.gang.resume_from
    assert resume is not None
    assert resume.step >= saved


def test_suspend_saves_gives_the_pods_back_and_goes_on_later() -> None:
    story = Story()
    story.until_step(8)
    story.cluster.edit_job(suspend=True)
    story.until(lambda: story.condition(ConditionType.SUSPENDED).status == "True")
    assert story.cluster.pods == {}
    assert story.status.state == JobState.SUSPENDED
    saved = story.status.checkpoint.step
    assert saved is not None
    assert saved >= 8
    story.run(20)
    story.cluster.edit_job(suspend=False)
    story.until_running(2)
    assert story.status.gang.resume_from is not None
    assert story.status.gang.resume_from.step == saved
    assert story.status.restarts.total == 0
    assert story.status.time.seconds.suspended >= 20
    story.until_ended()
    assert story.status.state == JobState.SUCCEEDED


def test_suspending_without_the_save_in_the_store_names_the_steps_that_are_lost() -> None:
    story = Story()
    story.until_step(8)
    story.cluster.gang.upload_seconds = 60.0
    story.cluster.edit_job(suspend=True)
    story.until(lambda: story.condition(ConditionType.SUSPENDED).status == "True")
    reached = story.status.progress.step if story.status.progress else 0
    lost = f"step {reached} was reached, the newest checkpoint known is of step 6"
    assert reached >= 8
    assert story.condition(ConditionType.SUSPENDED).message == lost
    assert story.events.count(("SuspendedUnsaved", lost)) == 1


def test_a_suspension_that_saved_warns_of_nothing() -> None:
    story = Story()
    story.until_step(8)
    story.cluster.edit_job(suspend=True)
    story.until(lambda: story.condition(ConditionType.SUSPENDED).status == "True")
    assert story.condition(ConditionType.SUSPENDED).message == ""
    assert "SuspendedUnsaved" not in story.reasons()


def test_a_drain_that_was_cut_short_names_the_steps_that_are_lost() -> None:
    story = Story()
    story.until_step(8)
    story.cluster.gang.upload_seconds = 60.0
    story.cluster.delete_pod("j-1", None, None, None)
    story.until_running(2)
    (message,) = [message for reason, message in story.events if reason == "PreemptedUnsaved"]
    assert "the newest checkpoint known is of step 6" in message
    assert story.causes() == {"Preemption": 1}
