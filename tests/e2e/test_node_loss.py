"""A node of a running job goes away."""

import json
import os
import shutil
import signal
from datetime import datetime
from pathlib import Path

import psutil
import pytest
from product import Product, TestedJob, wait_for
from tiny_job import tiny_job

from trireme.checkpoints import Manifest
from trireme.resources.status import ConditionType, JobState, JobStatus
from trireme_local.partition import PartitionUnavailable

ENDLESS = 1_000_000


def total_seconds(job: TestedJob, status: JobStatus) -> tuple[float, float]:
    """(seconds in all categories, seconds from creation to completion)."""
    created = datetime.fromisoformat(job.get().raw["metadata"]["creationTimestamp"])
    assert status.completion_time is not None
    return status.time.seconds.total(), (status.completion_time - created).total_seconds()


def assert_model_exported(job: TestedJob, status: JobStatus) -> None:
    """Safetensors, tokenizer and config lie in the store, and every file is what the digest in status covers."""
    assert status.model is not None
    root = job.product.bucket / status.model.uri.removeprefix(f"s3://{job.keys.bucket}/")
    manifest = Manifest.decode((root / "manifest.json").read_bytes())
    assert manifest.digest == status.model.digest
    names = {file.path for file in manifest.files}
    assert {"config.json", "tokenizer.json"} <= names
    assert any(name.endswith(".safetensors") for name in names)
    for file in manifest.files:
        assert (root / file.path).stat().st_size == file.bytes
    assert json.loads((root / "config.json").read_text())["vocab_size"] == 512


def test_job_survives_the_loss_of_its_leading_node(product: Product) -> None:
    job = product.apply(tiny_job("node-killed", nodes=2, devices=1, steps=400))
    job.wait_committed(25)
    lost, survivor = job.node_of(0), job.pod_uids()["node-killed-1"]
    product.local.kill_node(lost)
    status = job.wait_recovered(2)
    assert status.gang.resume_from is not None
    assert status.gang.resume_from.step >= 25
    assert lost not in [slot.node for slot in status.gang.slots]
    assert job.pod_uids()["node-killed-1"] == survivor, "the surviving pod takes part in the next attempt in place"

    status = job.wait_state(JobState.SUCCEEDED)
    assert [(r.cause, r.node, r.attempt) for r in status.restarts.history] == [("NodeLost", lost, 1)]
    counts = status.restarts
    assert (counts.total, counts.application, counts.infrastructure) == (1, 0, 1)
    assert status.progress is not None
    assert status.progress.step == 400
    accounted, lived = total_seconds(job, status)
    assert abs(accounted - lived) <= 1.0
    assert status.time.seconds.down > 0
    assert_model_exported(job, status)
    job.wait_event("JobSucceeded")
    reasons = [reason for reason, _ in job.events()]
    assert {"Accepted", "NodeLost", "AttemptRaised", "ResumePointRecorded", "JobSucceeded"} <= set(reasons)


def test_a_job_without_a_spare_node_says_so_and_goes_on_when_one_returns(product: Product) -> None:
    for node in ("node-3", "node-4"):
        product.kubectl("cordon", node)
    job = product.apply(tiny_job("no-spare", nodes=2, devices=1, steps=ENDLESS))
    job.wait_committed()
    lost = job.node_of(1)
    product.local.kill_node(lost)
    job.wait("no replacement", lambda s: (c := s.condition("Scheduled")) and c.reason == "NoReplacementNode")
    status, _, message = job.condition(ConditionType.SCHEDULED)
    assert status == "False"
    assert "1 nodes with enough free resources needed, 0 found" in message
    assert job.status.state == JobState.RESTARTING

    product.local.revive_node(lost)
    found = job.wait_recovered(2)
    assert [slot.node for slot in found.gang.slots if slot.index == 1] == [lost]
    assert found.gang.resume_from is not None


def test_a_thawed_node_stops_its_ranks_and_its_late_commit_is_not_adopted(product: Product) -> None:
    job = product.apply(tiny_job("thawed", nodes=2, devices=1, steps=ENDLESS, checkpoint__intervalSteps=100))
    job.wait_committed()
    frozen, old_uids = job.node_of(0), job.pod_uids()
    old = [p for p in job.processes() if p.environ()["NODE_NAME"] == frozen]
    product.local.kill_node(frozen, "freeze")
    job.wait_recovered(2)
    assert job.node_of(0) != frozen
    assert job.pod_uids()["thawed-0"] != old_uids["thawed-0"]
    ranks = [p for p in old if p.is_running()]
    assert ranks, "a frozen node still holds its processes"

    product.local.revive_node(frozen)
    wait_for("the thawed node's processes end", lambda: not any(_lives(p) for p in ranks), 60)
    status = job.status
    assert status.gang.attempt == 2, "what the thawed node does changes nothing"

    # What a writer that slipped through would leave: a whole, valid, newer checkpoint under the old attempt's prefix.
    job.wait("a commit of attempt 2", lambda s: s.checkpoint.attempt == 2)
    orphan = plant_commit(job, of=job.checkpoints()[-1], attempt=1, step=900_000)
    os.kill(next(iter(job.rank_pids(1).values())), signal.SIGKILL)
    status = job.wait_recovered(3)
    assert status.gang.resume_from is not None
    assert status.gang.resume_from.attempt == 2
    assert status.gang.resume_from.step < 900_000
    assert orphan.exists(), "an orphan is left to retention"


@pytest.mark.long
def test_a_partitioned_node_is_replaced_and_fences_itself(product: Product) -> None:
    job = product.apply(tiny_job("partitioned", nodes=2, devices=1, steps=ENDLESS))
    job.wait_committed()
    cut_off = job.node_of(1)
    ranks = [psutil.Process(pid) for pid in job.rank_pids(1).values()]
    try:
        product.local.kill_node(cut_off, "partition")
    except PartitionUnavailable as error:
        pytest.skip(str(error))
    wait_for("the ranks of the node that is cut off end", lambda: not any(_lives(p) for p in ranks), 120)
    status = job.wait_recovered(2)
    assert [(r.cause, r.node) for r in status.restarts.history] == [("NodeLost", cut_off)]
    product.local.revive_node(cut_off)
    wait_for("the node is Ready", lambda: product.local.node_readiness()[cut_off] == "True", 60)
    assert job.status.gang.attempt == 2


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def plant_commit(job: TestedJob, of: Manifest, attempt: int, step: int) -> Path:
    """Copy a checkpoint to another attempt and step, with a manifest that says so; the manifest's path."""
    target = job.step_directory(attempt, step)
    shutil.copytree(job.step_directory(of.attempt, of.step), target)
    manifest = of.model_copy(update={"attempt": attempt, "step": step})
    (target / "manifest.json").write_bytes(manifest.encode())
    return target / "manifest.json"
