"""A job that starts from another one's model: applied first, it waits, and goes on when the model is there."""

import subprocess
import sys
from pathlib import Path

from product import Product, TestedJob
from tiny_job import Json, tiny_job

from stdlib_examples import write_examples
from trireme.resources.status import ConditionType, JobState


def lineage(product: Product, name: str) -> list[list[str]]:
    """The rows of `trireme lineage`."""
    command = [sys.executable, "-m", "trireme_cli", "lineage", name, "--kubeconfig", str(product.local.kubeconfig)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()[1:]]


def finetune_job(name: str, base: str, examples: Path) -> Json:
    """A job on two nodes that teaches another one's model with LoRA."""
    like = tiny_job(name, nodes=2, devices=1)["spec"]
    spec = {key: like[key] for key in ("workers", "checkpoint", "faultTolerance")}
    spec["checkpoint"] |= {"intervalSteps": 10}
    spec |= {
        "base": {"job": {"name": base}},
        "task": "instruction",
        "method": {"lora": {"rank": 4}},
        "data": {
            "sources": [{"uri": str(examples)}],
            "sequenceLength": 512,
            "overlong": "drop",
            "validation": {"fraction": 0.1},
        },
        "training": {
            "steps": 200,
            "globalBatchSize": 8,
            "precision": "fp32",
            "optimizer": {"learningRate": 0.002},
        },
    }
    return {"apiVersion": "trireme.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": spec}


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


def test_a_model_is_fine_tuned_and_a_lost_node_changes_nothing_of_what_it_learns(
    product: Product, undisturbed: TestedJob
) -> None:
    examples = product.directory / "examples" / "train.jsonl"
    write_examples(examples, "argparse.py", "string.py", "shutil.py", "textwrap.py")
    finals = []
    for name in ("taught", "taught-twice"):
        job = product.apply(finetune_job(name, undisturbed.name, examples))
        job.wait_step(20)
        if name == "taught-twice":
            job.wait_committed()
            product.local.kill_node(job.node_of(1))
        finals.append(job.wait_state(JobState.SUCCEEDED, 300))
    first, second = finals
    assert [r.cause for r in second.restarts.history] == ["NodeLost"]
    assert first.inputs[0].digest == second.inputs[0].digest
    assert first.parameters is not None
    assert first.parameters == second.parameters
    assert 0 < first.parameters.trainable < first.parameters.total / 2
    # Adam's two moments in float32, of what is trained alone.
    assert first.memory is not None
    assert first.memory.optimizer_bytes == 8 * first.parameters.trainable
    assert first.resolved is not None
    assert "training.optimizer.learningRate" not in {c.field for c in first.resolved.choices}
    assert "method.lora.alpha" in {c.field for c in first.resolved.choices}
    assert first.progress is not None
    assert second.progress is not None
    assert first.progress.validation_loss is not None
    assert abs((first.progress.loss or 0) - (second.progress.loss or 1)) < 1e-4
    assert abs(first.progress.validation_loss - (second.progress.validation_loss or 0)) < 1e-4
    header, row = product.kubectl("get", "ftj", "taught").splitlines()
    assert header.split()[:3] == ["NAME", "STATE", "STEP"]
    assert row.split()[1] == "Succeeded"
