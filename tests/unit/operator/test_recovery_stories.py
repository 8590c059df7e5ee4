"""What the operator does about each kind of fault, told in the simulated cluster."""

from sim_agents import TOTAL_STEPS
from sim_scenario import Story

from trireme.protocol import FailureKind, InputsProblem, Phase
from trireme.resources.status import ConditionType, GangPhase, JobState


def test_a_job_runs_to_its_end() -> None:
    story = Story()
    story.until_ended()
    status = story.status
    assert status.state == JobState.SUCCEEDED
    assert status.progress is not None
    assert status.progress.step == TOTAL_STEPS
    assert status.restarts.total == 0
    assert status.model is not None
    for reason in (
        "Accepted",
        "GangForming",
        "GangReady",
        "ResumePointRecorded",
        "CheckpointCommitted",
        "JobSucceeded",
    ):
        assert reason in story.reasons()
    story.run(10)
    assert {pod["status"]["phase"] for pod in story.cluster.pods.values()} == {"Succeeded"}


def test_a_lost_node_moves_its_slot_and_leaves_the_other_pod() -> None:
    story = Story()
    story.until_step(8)
    kept, lost = story.pod_uid(0), story.pod_uid(1)
    node = story.kill_node_of(1)
    story.until_running(2)
    assert story.pod_uid(0) == kept
    assert story.pod_uid(1) != lost
    assert story.causes() == {"NodeLost": 1}
    assert story.status.failure is not None
    assert story.status.failure.node == node
    assert story.status.gang.resume_from is not None
    assert story.status.gang.resume_from.step == 6
    record = story.status.restarts.history[-1]
    assert record.step >= 8
    assert record.raised_at <= record.fenced_at <= record.ready_at <= record.run_at  # type: ignore[operator]
    story.until_ended()
    assert story.status.state == JobState.SUCCEEDED
    assert story.status.restarts.application == 0


def test_without_a_spare_node_the_job_says_so_and_goes_on_when_one_returns() -> None:
    story = Story(nodes=("n1", "n2"))
    story.until_step(8)
    node = story.kill_node_of(1)
    story.until(lambda: story.condition(ConditionType.SCHEDULED).reason == "NoReplacementNode")
    assert "1 nodes with enough free resources needed, 0 found" in story.condition(ConditionType.SCHEDULED).message
    assert story.status.state == JobState.RESTARTING
    story.cluster.nodes[node].alive = True
    story.until_ended()
    assert story.status.state == JobState.SUCCEEDED
    assert story.status.restarts.total == 1


def test_a_frozen_nodes_late_commit_is_not_adopted() -> None:
    story = Story()
    story.until_step(8)
    leader = story.agent(0)
    story.cluster.nodes[leader.node].frozen = True
    story.until_running(2)
    story.run(3)
    story.cluster.nodes[leader.node].frozen = False
    story.cluster.gang.late_commit(leader, 8)
    assert story.cluster.store.commits[-1].orphan
    story.run(5)
    assert leader.uid not in story.cluster.agents
    story.agent(1).fail(FailureKind.KILLED)
    story.until_running(3)
    resume = story.status.gang.resume_from
    assert resume is not None
    assert resume.uri != "s3://b/job-1/a1/step-8"
    story.until_ended()
    assert story.status.state == JobState.SUCCEEDED


def test_a_rank_that_raises_restarts_in_place_and_is_the_culprit() -> None:
    story = Story()
    story.until_step(8)
    pods = story.pod_uid(0), story.pod_uid(1)
    story.agent(1).fail(FailureKind.EXCEPTION, "ValueError", "bad number", step=9)
    story.until_running(2)
    assert (story.pod_uid(0), story.pod_uid(1)) == pods
    failure = story.status.failure
    assert failure is not None
    assert (failure.rank, failure.exception, failure.step, failure.message) == (1, "ValueError", 9, "bad number")
    assert story.status.restarts.application == 1


def test_a_broken_device_blames_its_node() -> None:
    story = Story()
    story.until_step(8)
    node = story.agent(1).node
    story.agent(1).fail(FailureKind.DEVICE, "AcceleratorError", "CUDA error: uncorrectable ECC error encountered")
    story.until_running(2)
    assert (story.causes(), story.status.restarts.infrastructure) == ({"DeviceFault": 1}, 1)
    assert [(r.node, r.failures) for r in story.status.gang.node_records] == [(node, 1)]


def test_a_failed_disk_is_charged_to_infrastructure_and_blames_its_node() -> None:
    story = Story()
    story.until_step(8)
    node = story.agent(1).node
    story.agent(1).fail(FailureKind.LOCAL_DISK, "OSError", "No space left on device")
    story.until_running(2)
    assert story.causes() == {"LocalDiskFailed": 1}
    assert (story.status.restarts.infrastructure, story.status.restarts.application) == (1, 0)
    assert [(r.node, r.failures) for r in story.status.gang.node_records] == [(node, 1)]


def test_a_nan_loss_ends_the_job_at_once() -> None:
    story = Story()
    story.until_step(5)
    story.agent(0).fail(FailureKind.NAN_LOSS)
    story.until_ended()
    assert story.condition(ConditionType.FAILED).reason == "NaNLoss"
    assert story.status.gang.attempt == 1


def test_one_fault_more_than_the_budget_ends_the_job() -> None:
    story = Story()
    for attempt in (1, 2):
        story.until_running(attempt)
        story.until(lambda: story.agent(1).ranks_of)
        story.run(3)
        story.agent(1).fail(FailureKind.OOM_KILLED)
        story.run(3)
    story.until_ended()
    assert story.condition(ConditionType.FAILED).reason == "OutOfMemoryBudgetExhausted"
    assert story.status.restarts.out_of_memory == 1


def test_a_hanging_rank_is_restarted() -> None:
    story = Story()
    story.until_step(8)
    story.agent(1).hung = True
    story.until_running(2)
    assert story.causes() == {"Hang": 1}
    story.until_ended()
    assert story.status.state == JobState.SUCCEEDED


def test_a_status_set_back_to_a_backup_is_overtaken_and_not_stuck() -> None:
    story = Story()
    story.until_step(5)
    backup = story.cluster.job["status"]
    story.agent(1).fail(FailureKind.KILLED)
    story.until_running(2)
    story.until(lambda: story.agent(0).ranks_of == 2)
    story.cluster.job = {**story.cluster.job, "status": backup}
    story.cluster.edit_job()
    story.until_running(3)
    assert story.status.gang.cause == "StatusLost"
    story.until_ended()
    assert story.status.state == JobState.SUCCEEDED


def test_a_status_set_back_to_before_its_job_trained_writes_over_nothing() -> None:
    story = Story()
    story.run(2)
    backup = story.cluster.job["status"]
    assert story.status.gang.attempt <= 1
    story.until_step(5)
    story.agent(1).fail(FailureKind.KILLED)
    story.until_running(2)
    story.until_step(11)
    story.cluster.edit_job(suspend=True)
    story.until(lambda: not story.cluster.pods)
    newest = story.status.checkpoint.uri
    story.cluster.job = {**story.cluster.job, "status": backup}
    story.cluster.edit_job(suspend=False)
    story.until_running(3)
    assert story.status.gang.cause == "StatusLost"
    assert story.status.restarts.total == 0
    resume = story.status.gang.resume_from
    assert resume is not None
    assert resume.uri == newest
    assert any(reason == "AttemptRaised" and "attempt 2 began" in message for reason, message in story.events)
    story.until_ended()
    assert story.status.state == JobState.SUCCEEDED


def test_a_status_set_back_to_before_the_ranks_of_its_attempt_started_is_overtaken() -> None:
    story = Story()
    story.until_phase(GangPhase.PREPARING)
    backup = story.cluster.job["status"]
    story.until_step(5)
    story.cluster.job = {**story.cluster.job, "status": backup}
    story.cluster.edit_job()
    story.until_running(2)
    assert story.status.gang.cause == "StatusLost"
    story.until_ended()
    assert story.status.state == JobState.SUCCEEDED


def test_a_corrupt_checkpoint_is_named_and_the_one_before_is_taken() -> None:
    story = Story()
    story.until_step(10)
    story.cluster.store.commits[-1].good = False
    story.agent(1).fail(FailureKind.KILLED)
    story.until_running(2)
    assert story.status.gang.resume_from is not None
    assert story.status.gang.resume_from.step == 6
    assert any(reason == "CheckpointRejected" and "step-9" in message for reason, message in story.events)
    story.until_ended()
    assert story.status.state == JobState.SUCCEEDED


def test_all_checkpoints_corrupt_fails_and_never_starts_over() -> None:
    story = Story()
    story.until_step(10)
    for commit in story.cluster.store.commits:
        commit.good = False
    story.agent(1).fail(FailureKind.KILLED)
    story.until_ended()
    assert story.condition(ConditionType.FAILED).reason == "AllCheckpointsCorrupt"


def test_checkpoints_that_vanish_fail_and_never_start_over() -> None:
    story = Story()
    story.until_step(10)
    story.cluster.store.commits.clear()
    story.agent(1).fail(FailureKind.KILLED)
    story.until_ended()
    assert story.condition(ConditionType.FAILED).reason in ("AllCheckpointsCorrupt", "CheckpointMissing")


def test_an_operator_outage_alone_stops_nothing() -> None:
    story = Story()
    story.until_step(5)
    for _ in range(15):
        story.cluster.tick()
    story.operator.start()
    story.run(3)
    assert story.status.gang.attempt == 1
    story.until_ended()
    assert story.status.state == JobState.SUCCEEDED
    assert story.status.restarts.total == 0


def test_agents_that_refuse_the_operators_key_train_on_and_are_named() -> None:
    story = Story()
    story.until_step(5)
    pods = [story.pod_uid(slot) for slot in (0, 1)]
    for slot in (0, 1):
        story.agent(slot).refuses_key = True
    story.operator.start()
    story.run(90)
    condition = story.condition(ConditionType.RUNNING)
    assert (condition.status, condition.reason) == ("Unknown", "KeyRefused")
    assert "agents of slots 0, 1 refuse the operator's key" in condition.message
    assert [story.pod_uid(slot) for slot in (0, 1)] == pods
    assert story.status.gang.attempt == 1
    for slot in (0, 1):
        story.agent(slot).refuses_key = False
    story.operator.start()
    story.until_ended()
    assert (story.status.state, story.status.restarts.total) == (JobState.SUCCEEDED, 0)


def test_a_pod_that_replaces_another_is_made_under_the_key_of_its_gang() -> None:
    story = Story()
    story.until_step(8)
    first = story.token_secret(0)
    story.operator.keys = (b"new" * 16, *story.operator.keys)
    story.operator.start()
    kept = story.pod_uid(0)
    story.kill_node_of(1)
    story.until_running(2)
    assert story.pod_uid(0) == kept
    assert story.token_secret(1) == first
    story.cluster.edit_job(suspend=True)
    story.until(lambda: not story.cluster.pods)
    story.cluster.edit_job(suspend=False)
    story.until_running(story.status.gang.attempt + 1)
    assert story.token_secret(0) == story.token_secret(1) != first


def test_bad_inputs_wait_or_fail_as_the_agent_says() -> None:
    story = Story()
    story.cluster.store.problem = InputsProblem(reason="AccessDenied", message="403 from s3://b", retryable=True)
    story.until_phase(GangPhase.PREPARING)
    story.run(5)
    ready = story.condition(ConditionType.INPUTS_READY)
    assert (ready.status, ready.reason) == ("False", "AccessDenied")
    assert story.status.completion_time is None
    story.cluster.store.problem = InputsProblem(reason="DataEmpty", message="0 tokens in s3://b/text", retryable=False)
    story.until_ended()
    failed = story.condition(ConditionType.FAILED)
    assert (failed.reason, failed.message) == ("DataEmpty", "0 tokens in s3://b/text")
    assert story.cluster.gang.progress.step == 0


def test_a_spec_that_cannot_work_is_refused_with_the_numbers_and_no_pods_until_it_is_edited() -> None:
    story = Story(parallelism={"tensor": 3})
    story.run(2)
    accepted = story.condition(ConditionType.ACCEPTED)
    assert accepted.status == "False"
    assert "parallelism" in accepted.message
    assert "3" in accepted.message
    assert story.status.state == JobState.REJECTED
    assert story.cluster.pods == {}
    story.cluster.edit_job(parallelism={"tensor": 1})
    story.until_ended()
    assert story.status.state == JobState.SUCCEEDED


def test_changed_settings_reach_the_agents_without_a_restart() -> None:
    story = Story()
    story.until_step(5)
    story.cluster.edit_job(checkpoint={**story.cluster.job["spec"]["checkpoint"], "keep": 7})
    story.run(3)
    for slot in (0, 1):
        target = story.agent(slot).target
        assert target is not None
        assert (target.settings.keep, target.attempt, target.phase) == (7, 1, Phase.RUN)
    assert story.status.restarts.total == 0


def test_the_deadline_ends_a_job() -> None:
    story = Story(activeDeadlineSeconds=15)
    story.until_ended()
    assert story.condition(ConditionType.FAILED).reason == "DeadlineExceeded"
    story.run(10)
    assert not story.cluster.gang.executing()


def test_a_node_with_many_faults_is_avoided() -> None:
    story = Story()
    for attempt in (1, 2, 3):
        story.until_running(attempt)
        story.until(lambda: story.agent(1).ranks_of)
        story.run(3)
        node = story.agent(1).node
        story.agent(1).fail(FailureKind.KILLED)
        story.run(2)
    story.until_running(4)
    assert story.agent(1).node != node
    records = {r.node: r for r in story.status.gang.node_records}
    assert records[node].excluded
    assert records[node].failures == 3
