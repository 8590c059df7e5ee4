"""What is stored is not what was written."""

from pathlib import Path

from product import Product, TestedJob
from tiny_job import tiny_job

from trireme.checkpoints import Manifest
from trireme.resources.status import JobState

ENDLESS = 1_000_000


def flip_a_byte(job: TestedJob, manifest: Manifest) -> str:
    """Damage the largest file of a checkpoint; its name."""
    file = max(manifest.files, key=lambda f: f.bytes)
    path: Path = job.step_directory(manifest.attempt, manifest.step) / file.path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x01
    path.write_bytes(data)
    return file.path


def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_all_damaged_end_the_job(product: Product) -> None:
    job = product.apply(tiny_job("damaged", nodes=2, devices=1, steps=ENDLESS, checkpoint__keep=5))
    job.wait("two checkpoints", lambda s: s.checkpoint.committed_count >= 2)
    job.patch({"checkpoint": {"intervalSteps": 10_000_000}})
    settled = job.wait_step(job.wait_committed() + 60)
    saved = job.checkpoints()
    assert settled > saved[-1].step, "no save is under way"
    name = flip_a_byte(job, saved[-1])
    product.local.kill_node(job.node_of(0))
    status = job.wait_recovered(2)
    assert status.gang.resume_from is not None
    assert (status.gang.resume_from.step, status.gang.resume_from.attempt) == (saved[-2].step, 1)
    message = job.wait_event("CheckpointRejected")
    assert name in message
    assert f"step-{saved[-1].step}" in message

    for manifest in saved[:-1]:
        flip_a_byte(job, manifest)
    product.local.kill_node(job.node_of(0))  # and with it the good copy that slot 0 has resumed from
    status = job.wait("the end", lambda s: s.state == JobState.FAILED and s)
    failed = status.condition("Failed")
    assert failed is not None
    assert failed.reason == "AllCheckpointsCorrupt"
    assert name in failed.message
