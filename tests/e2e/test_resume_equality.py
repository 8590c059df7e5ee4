"""A job that lost a node ends as if nothing had happened."""

import pytest
from product import LoggedStep, Product, TestedJob, wait_for
from tiny_job import tiny_job

from trireme.checkpoints import Manifest
from trireme.checkpoints.keys import MANIFEST_NAME
from trireme.resources.status import JobState

STEPS = 90
TOLERANCE = 1e-5
LAYOUTS = {
    "2-2-1": {"tensor": 2, "pipeline": 2, "data": 1},
    "2-2-2": {"tensor": 2, "pipeline": 2, "data": 2},
}


def finish(job: TestedJob) -> tuple[list[dict[int, LoggedStep]], float]:
    """(the steps of each attempt, the last validation loss) of a job that succeeds."""
    status = job.wait_state(JobState.SUCCEEDED, 400)
    wait_for("rank 0's whole log is stored", lambda: STEPS in job.steps_of(status.gang.attempt), 60)
    # Status rounds losses for people; the exported model's manifest does not.
    exported = Manifest.decode((job.product.bucket / job.keys.model(status.gang.attempt) / MANIFEST_NAME).read_bytes())
    assert exported.state["validationStep"] == STEPS
    return [job.steps_of(attempt) for attempt in range(1, status.gang.attempt + 1)], exported.state["validationLoss"]


@pytest.mark.parametrize("name", [pytest.param("2-2-1"), pytest.param("2-2-2", marks=pytest.mark.long)])
def test_steps_after_a_node_loss_equal_those_of_an_undisturbed_run(product: Product, name: str) -> None:
    layout = LAYOUTS[name]
    devices = 2 * layout["data"]
    shape = {"training__validationIntervalSteps": 30, "checkpoint__intervalSteps": 10}
    calm = product.apply(tiny_job(f"calm-{name}", nodes=2, devices=devices, steps=STEPS, layout=layout, **shape))
    (expected,), expected_validation = finish(calm)
    assert sorted(expected) == list(range(1, STEPS + 1))
    calm.delete()

    hurt = product.apply(tiny_job(f"hurt-{name}", nodes=2, devices=devices, steps=STEPS, layout=layout, **shape))
    hurt.wait_committed(10)
    hurt.wait_step(13)
    # Slot 0 keeps its log; the loss of slot 1 costs half of the model's layers and of the optimizer's state.
    product.local.kill_node(hurt.node_of(1))
    attempts, validation = finish(hurt)
    assert len(attempts) == 2
    resumed_at = hurt.status.restarts.history[0].resume_step
    assert sorted(attempts[1]) == list(range((resumed_at or 0) + 1, STEPS + 1))
    for steps in attempts:
        for number, step in steps.items():
            same = expected[number]
            assert step.loss == pytest.approx(same.loss, abs=TOLERANCE)
            assert step.grad_norm == pytest.approx(same.grad_norm, abs=TOLERANCE)
            assert (step.learning_rate, step.samples) == (same.learning_rate, same.samples)
    assert validation == pytest.approx(expected_validation, abs=TOLERANCE)
