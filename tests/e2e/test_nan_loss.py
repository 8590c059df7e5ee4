"""A loss that is not a number."""

from product import Product
from tiny_job import tiny_job

from trireme.resources.status import JobState


def test_weights_that_are_not_numbers_are_never_committed(product: Product) -> None:
    manifest = tiny_job(
        "diverging",
        devices=1,
        steps=100_000,
        layout={"tensor": 1},
        training__optimizer={"learningRate": 10.0, "weightDecay": 10.0, "eps": 1e-8},
        training__gradientClip=0,
        training__schedule={"kind": "constant", "warmupSteps": 0},
        checkpoint__intervalSteps=1,
    )
    job = product.apply(manifest)
    status = job.wait("the end", lambda s: s.state == JobState.FAILED and s)
    failed = status.condition("Failed")
    assert failed is not None
    assert failed.reason == "NaNLoss"
    assert "learning rate" in failed.message
    assert status.restarts.total == 0, "another try would end the same way"
    assert status.failure is not None
    saved = job.checkpoints()
    assert all(manifest.step <= (status.failure.step or 0) for manifest in saved)
    assert status.model is None
