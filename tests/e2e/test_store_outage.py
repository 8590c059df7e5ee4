"""The object store goes away in mid-run."""

import re

from product import Product
from tiny_job import tiny_job

from trireme.resources.status import ConditionType

ENDLESS = 1_000_000


def test_training_goes_on_while_the_store_is_away(product: Product) -> None:
    job = product.apply(tiny_job("store-away", devices=2, steps=ENDLESS))
    job.wait("a healthy checkpoint", lambda s: (c := s.condition("CheckpointHealthy")) and c.status == "True")
    product.store_process().kill()
    job.wait("unhealthy", lambda s: (c := s.condition("CheckpointHealthy")) and c.status == "False")
    _, reason, message = job.condition(ConditionType.CHECKPOINT_HEALTHY)
    assert reason == "StoreUnavailable"
    assert re.search(r"last checkpoint is of step \d+, \d+ s old", message)
    reached = job.wait_step(1)
    job.wait_step(reached + 20)
    assert job.status.gang.attempt == 1

    committed = job.status.checkpoint.step or 0
    product.local.up(nodes=product.nodes, say=lambda text: None)  # starts what is not running
    job.wait("healthy again", lambda s: (c := s.condition("CheckpointHealthy")) and c.status == "True")
    assert job.wait_committed(committed + 1) > committed
    assert job.status.restarts.total == 0
    reasons = [reason for reason, _ in job.events()]
    assert {"CheckpointFailing", "CheckpointRecovered"} <= set(reasons)
