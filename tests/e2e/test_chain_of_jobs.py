"""A job that starts from another one's model: applied first, it waits, and goes on when the model is there."""

import subprocess
import sys

from product import Product
from tiny_job import tiny_job

from trireme.resources.status import ConditionType, JobState


def lineage(product: Product, name: str) -> list[list[str]]:
    """The rows of `trireme lineage`."""
    command = [sys.executable, "-m", "trireme_cli", "lineage", name, "--kubeconfig", str(product.local.kubeconfig)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()[1:]]


def test_a_job_waits_for_the_job_that_it_starts_from_and_its_model_outlives_that_job(product: Product) -> None:
    second = product.apply(tiny_job("second", steps=20, model__startFromJob={"name": "first"}))

    def waits(reason: str) -> None:
        second.wait(
            reason,
            lambda s: (found := s.condition(ConditionType.INPUTS_READY)) is not None and found.reason == reason,
            60,
        )

    waits("WaitingForUpstream")
    assert second.pods() == {}
    # One that cannot work is no reason to give up: it is corrected, and the chain goes on.
    product.apply(tiny_job("first", steps=60, training__globalBatchSize=7))
    waits("UpstreamFailed")
    first = product.apply(tiny_job("first", steps=60))
    made = first.wait_state(JobState.SUCCEEDED, 200)
    assert made.model is not None
    status = second.wait_state(JobState.SUCCEEDED, 200)
    (known,), uid = status.inputs, first.get().uid
    assert (known.kind, known.name, known.uid) == ("PretrainJob", "first", uid)
    assert (known.uri, known.digest) == (made.model.uri, made.model.digest)
    assert made.progress is not None
    assert made.progress.loss is not None
    assert status.progress is not None
    assert status.progress.first_loss is not None
    assert abs(status.progress.first_loss - made.progress.loss) < 0.5, "it goes on where the first one ended"
    assert made.progress.first_loss is not None
    assert status.progress.first_loss < made.progress.first_loss - 1.0

    assert status.model is not None
    rows = lineage(product, "second")
    assert [row[:2] for row in rows] == [["PretrainJob/second", "Succeeded"], ["PretrainJob/first", "Succeeded"]]
    assert [row[-1] for row in rows] == [status.model.digest, made.model.digest]
    product.kubectl("delete", "ptj", "first")
    assert lineage(product, "second")[1][1:] == ["Deleted", uid, made.model.uri, made.model.digest]
