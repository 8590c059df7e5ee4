"""Slow is not broken."""

import subprocess
import sys
import time

import psutil
import pytest
from product import Product
from tiny_job import tiny_job

ENDLESS = 1_000_000
BURN_SECONDS = 60.0


@pytest.mark.long
def test_a_healthy_job_is_not_restarted_while_every_core_burns(product: Product) -> None:
    job = product.apply(tiny_job("busy", nodes=2, devices=2, steps=ENDLESS, layout={"tensor": 2, "pipeline": 2}))
    job.wait_committed()
    before = job.wait_step(1)
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(psutil.cpu_count() or 1)]
    try:
        deadline = time.monotonic() + BURN_SECONDS
        while time.monotonic() < deadline:
            status = job.status
            assert (status.gang.attempt, status.restarts.total) == (1, 0)
            time.sleep(1.0)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    job.wait_step(before + 1)
    assert (job.status.gang.attempt, job.status.restarts.total) == (1, 0)
