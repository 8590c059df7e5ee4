"""The operator dies, or stops and comes back, while a job runs."""

import os
import random
import signal
import time

from product import Product, wait_for
from tiny_job import tiny_job

from trireme.resources.status import GangPhase, JobState

ENDLESS = 1_000_000
KILLS = 3


def test_an_operator_killed_at_any_point_leaves_one_attempt_and_the_same_pods(product: Product) -> None:
    rng = random.Random(7)
    job = product.apply(tiny_job("operator-killed", nodes=2, devices=1, steps=ENDLESS))
    uids: dict[str, str] = {}
    for _ in range(KILLS):
        deadline = time.monotonic() + rng.uniform(0.0, 4.0)
        while time.monotonic() < deadline:
            time.sleep(0.05)
            seen = job.pod_uids()
            assert uids.items() <= seen.items(), "a pod that was made stays"
            uids = seen
        product.kill_operator(product.operators[0])
        product.start_operator()
    job.wait_step(1)
    status = job.wait_state(JobState.RUNNING)
    assert status.gang.attempt == 1
    assert status.restarts.total == 0
    assert uids.items() <= job.pod_uids().items()
    assert len(job.pod_uids()) == 2
    product.kill_operator(product.operators[0])
    reached = job.wait_step(1)
    job.wait_step(reached + 20)
    product.start_operator()
    wait_for("a new leader", lambda: product.leader() != "", 60)
    job.wait("progress is told again", lambda s: (s.progress.step if s.progress else 0) > reached)
    assert job.status.gang.attempt == 1


def test_a_leader_stopped_in_mid_recovery_changes_nothing_when_it_continues(product: Product) -> None:
    old = product.operators[0]
    holder = wait_for("a leader", product.leader, 60)
    job = product.apply(tiny_job("two-leaders", nodes=2, devices=1, steps=ENDLESS))
    job.wait_committed()
    uids = job.pod_uids()
    product.start_operator()
    os.kill(next(iter(job.rank_pids(0).values())), signal.SIGKILL)
    pod = job.pods()["two-leaders-1"]
    product.kubectl("delete", "pod", pod["metadata"]["name"], "--force", "--grace-period=0")
    phases = (GangPhase.FENCING, GangPhase.FORMING, GangPhase.PREPARING)
    job.wait("recovery has begun", lambda s: s.gang.attempt >= 2 and s.gang.phase in phases)
    old.process.send_signal(signal.SIGSTOP)
    wait_for("the other operator leads", lambda: product.leader() not in ("", holder), 60)
    status = job.wait_recovered(2)
    seen, attempt, counts = job.pod_uids(), status.gang.attempt, status.restarts
    old.process.send_signal(signal.SIGCONT)
    wait_for("the stopped operator finds out", lambda: b"no longer leading" in old.log.read_bytes(), 60)
    reached = job.wait_step(1, attempt)
    job.wait_step(reached + 50, attempt)
    after = job.status
    assert job.pod_uids() == seen
    assert after.gang.attempt == attempt
    assert (after.restarts.total, after.restarts.by_cause) == (counts.total, counts.by_cause)
    # As with a single operator: the surviving pod stays, the other was replaced, each fault was counted once.
    assert seen["two-leaders-0"] == uids["two-leaders-0"]
    assert seen["two-leaders-1"] != uids["two-leaders-1"]
    assert sum(cause.count for cause in after.restarts.by_cause) == attempt - 1 <= 2
