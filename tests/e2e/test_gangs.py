"""Gangs are all or nothing."""

from product import Product
from tiny_job import tiny_job

from trireme.resources.status import JobState


def test_two_jobs_of_two_nodes_both_finish_on_three_nodes(product: Product) -> None:
    product.kubectl("cordon", "node-4")
    jobs = [product.apply(tiny_job(f"gang-{letter}", nodes=2, devices=1, steps=60)) for letter in "ab"]
    for job in jobs:
        status = job.wait_state(JobState.SUCCEEDED)
        assert status.restarts.total == 0
