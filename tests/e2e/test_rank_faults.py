"""A rank dies, hangs, raises, or takes too much memory."""

import os
import signal
from pathlib import Path

from product import Product, TestedJob
from tiny_job import tiny_job

from trireme.resources.status import JobState

ENDLESS = 1_000_000


def scratch_of(job: TestedJob, slot: int = 0) -> Path:
    """The scratch volume of a slot's pod, as a directory of this computer."""
    (uid,) = (uid for pod, uid in job.pod_uids().items() if pod.endswith(f"-{slot}"))
    return job.product.local.directory / "nodes" / job.node_of(slot) / "pods" / uid / "volumes" / "trireme-scratch"


def test_ranks_restart_in_their_pod_when_one_is_killed_or_hangs(product: Product) -> None:
    job = product.apply(
        tiny_job("rank-faults", devices=2, steps=ENDLESS, faultTolerance__timeouts__stepTimeoutSeconds=15)
    )
    job.wait_committed()
    uids = job.pod_uids()

    os.kill(job.rank_pids()[1], signal.SIGKILL)
    status = job.wait_recovered(2)
    assert [(r.cause, r.rank) for r in status.restarts.history] == [("RankKilled", 1)]
    assert status.failure is not None
    assert (status.failure.rank, status.failure.signal) == (1, signal.SIGKILL)

    os.kill(job.rank_pids()[0], signal.SIGSTOP)
    status = job.wait_recovered(3)
    assert [(r.cause, r.rank) for r in status.restarts.history[1:]] == [("Hang", 0)]

    counts = status.restarts
    assert (counts.total, counts.infrastructure, counts.hang, counts.application) == (2, 1, 1, 0)
    assert job.pod_uids() == uids, "ranks restart in the pods that are there"


def test_an_exception_restarts_and_the_same_one_at_the_same_step_ends_the_job(product: Product) -> None:
    """The node's disk returns other bytes than were written: tokens outside the vocabulary, at every try."""
    job = product.apply(tiny_job("exception", devices=1, steps=ENDLESS, layout={"tensor": 1}))
    job.wait_committed()
    files = list(scratch_of(job).glob("cache/datasets/*/*.train.bin"))
    assert files
    for tokens in files:
        with tokens.open("r+b") as file:
            file.write(b"\xff" * tokens.stat().st_size)
    status = job.wait("the end", lambda s: s.state == JobState.FAILED and s)
    failed = status.condition("Failed")
    assert failed is not None
    assert failed.reason == "DeterministicFailure"
    assert {r.cause for r in status.restarts.history} == {"Exception"}
    assert status.restarts.application == status.restarts.total >= 1
    assert status.failure is not None
    assert status.failure.exception == "IndexError"
    assert "embedding" in status.failure.traceback_tail
    assert status.model is None


def test_a_pod_over_its_memory_limit_uses_its_own_budget(product: Product) -> None:
    manifest = tiny_job(
        "out-of-memory",
        devices=1,
        steps=ENDLESS,
        workers__resources__limits={"memory": "530Mi"},
        faultTolerance__budgets={"outOfMemory": 1},
    )
    job = product.apply(manifest)
    status = job.wait("the end", lambda s: s.state == JobState.FAILED and s)
    failed = status.condition("Failed")
    assert failed is not None
    assert failed.reason == "OutOfMemoryBudgetExhausted"
    counts = status.restarts
    assert (counts.total, counts.out_of_memory, counts.application, counts.infrastructure) == (1, 1, 0, 0)
    assert status.failure is not None
    assert status.failure.cause == "OOMKilled"
