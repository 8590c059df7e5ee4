"""Suspend saves, gives the pods back, and continues where it stopped."""

from product import Product
from tiny_job import tiny_job

from trireme.resources.status import JobState


def test_a_suspended_job_saves_gives_its_pods_back_and_continues(product: Product) -> None:
    steps = 1500
    job = product.apply(tiny_job("suspended", nodes=2, devices=1, steps=steps, checkpoint__intervalSteps=steps))
    before = job.wait_step(20)
    job.patch({"suspend": True})
    status = job.wait_state(JobState.SUSPENDED)
    assert status.checkpoint.step is not None
    assert status.checkpoint.step >= before
    assert job.pods() == {}
    assert job.processes() == []

    job.patch({"suspend": False})
    status = job.wait_recovered(2)
    assert status.gang.resume_from is not None
    assert status.gang.resume_from.step == status.checkpoint.step
    assert status.gang.cause == "Resumed"
    assert status.restarts.total == 0
    assert status.time.seconds.suspended > 0
