"""The whole life of a model by one `kubectl apply -f examples/line/`, with a node lost in two of its stages."""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from openai import OpenAI
from product import Product, TestedJob, wait_for

from trireme.resources.status import ConditionType, JobState, JobStatus

LINE = Path(__file__).parents[2] / "examples" / "line"
Json = dict[str, Any]
pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
PROMPT = "def dump(obj, fp):"
STAGE_SECONDS = 1200.0


def manifest(name: str) -> Json:
    document: Json = yaml.safe_load((LINE / name).read_text())
    return document


def variant(document: Json, name: str, **changes: Any) -> Json:
    """The same job under another name, with values at paths in the spec with __ between the names."""
    other = copy.deepcopy(document)
    other["metadata"]["name"] = name
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = other["spec"]
        for parent in parents:
            place = place[parent]
        place[last] = value
    return other


def series(job: TestedJob, what: str) -> dict[int, float]:
    """loss or grad_norm of every step, the newest attempt's where two computed it."""
    found = {}
    folder = job.product.bucket / job.keys.job_prefix / "logs"
    for log in sorted(folder.glob("a*/rank-0.log")):
        for step, value in re.findall(rf"step (\d+)/\d+ .*?\b{what} (\S+)", log.read_text()):
            found[int(step)] = float(value)
    return found


def lose_a_node(product: Product, job: TestedJob) -> JobStatus:
    """The job's end, after one of its nodes was lost in the middle."""
    job.wait_committed(10)
    product.local.kill_node(job.node_of(1))
    status = job.wait_state(JobState.SUCCEEDED, STAGE_SECONDS)
    assert [restart.cause for restart in status.restarts.history] == ["NodeLost"]
    return status


def same(disturbed: TestedJob, reference: TestedJob, steps: int) -> None:
    """Every step of two jobs, within 1e-4."""
    for what in ("loss", "grad_norm"):
        expected, found = series(reference, what), series(disturbed, what)
        assert set(found) == set(expected) == set(range(1, steps + 1))
        assert max(abs(found[step] - expected[step]) for step in expected) < 1e-4, what


def metrics(status: JobStatus) -> dict[str, float]:
    assert status.progress is not None
    return status.progress.metrics


def service_status(product: Product) -> Json:
    path = "/apis/trireme.dev/v1alpha1/namespaces/default/inferenceservices/stdlib"
    status: Json = product.cluster.request("GET", path).get("status") or {}
    return status


def ready(product: Product) -> bool:
    conditions = service_status(product).get("conditions") or []
    return {"Ready", "AdaptersLoaded"} <= {c["type"] for c in conditions if c["status"] == "True"}


def answer(product: Product, model: str) -> tuple[str, tuple[float, ...]]:
    """The likeliest answer, and the log-probabilities of its tokens."""
    client = OpenAI(base_url=service_status(product)["url"], api_key="none", max_retries=0)
    done = client.completions.create(model=model, prompt=PROMPT, max_tokens=24, temperature=0, logprobs=0)
    choice = done.choices[0]
    assert choice.logprobs is not None
    return choice.text, tuple(round(number or 0.0, 4) for number in choice.logprobs.token_logprobs or ())


@pytest.fixture
def line(product: Product) -> Iterator[Product]:
    """The four stages, applied by one command; the service is gone afterwards."""
    product.kubectl("apply", "-f", str(LINE))
    yield product
    product.kubectl("delete", "tis", "stdlib", "--ignore-not-found")


def test_a_model_is_trained_taught_aligned_and_served_by_one_command_and_two_lost_nodes(line: Product) -> None:
    product = line
    pretrain = TestedJob(product, "stdlib-base")
    taught = TestedJob(product, "stdlib-docstrings", "FineTuneJob")
    aligned = TestedJob(product, "stdlib-preferences", "RLHFJob")
    product.jobs |= {job.name: job for job in (pretrain, taught, aligned)}
    for job in (taught, aligned):
        job.wait("waits", lambda _, job=job: job.condition(ConditionType.INPUTS_READY)[1] == "WaitingForUpstream", 60)
        assert job.pods() == {}
    pretrain.wait_state(JobState.SUCCEEDED, STAGE_SECONDS)

    # Taught: better on held-out functions than the base, and than a control that read as much plain source.
    taught_status = lose_a_node(product, taught)
    aligned_status = lose_a_node(product, aligned)
    document = manifest("2-finetune.yaml")
    reference = product.apply(variant(document, "docstrings-again"))
    reference.wait_state(JobState.SUCCEEDED, STAGE_SECONDS)
    same(taught, reference, document["spec"]["training"]["steps"])
    changes = {"data__sources": [document["spec"]["data"]["sources"][0] | {"columns": {"text": "source"}}]}
    control = product.apply(variant(document, "plain-text", data__overlong="truncate", **changes))
    control_status = control.wait_state(JobState.SUCCEEDED, STAGE_SECONDS)
    losses = [metrics(taught_status)["start/loss"]]
    for status in (control_status, taught_status):
        assert status.progress is not None
        assert status.progress.validation_loss is not None
        losses.append(status.progress.validation_loss)
    base, plain, own = losses
    print(f"held-out loss: base {base:.4f}, plain text {plain:.4f}, taught {own:.4f}")
    assert own < plain - 0.05
    assert own < base - 0.05

    # Aligned: as the undisturbed run is, and above chance on held-out pairs by twice the standard error of their share.
    document = manifest("3-align.yaml")
    reference = product.apply(variant(document, "preferences-again"))
    reference.wait_state(JobState.SUCCEEDED, STAGE_SECONDS)
    same(aligned, reference, document["spec"]["training"]["steps"])
    found = metrics(aligned_status)
    print("held-out preferences:", {name: round(value, 4) for name, value in found.items()})
    assert found["start/accuracy"] == 0.5, "the policy is its own reference"
    assert found["validation/accuracy"] > 0.54
    assert found["validation/margin"] > 0
    assert aligned_status.inputs[0].digest == (taught_status.model.digest if taught_status.model else None)

    # Served, also once all that it was made of is gone.
    wait_for("the service is ready", lambda: ready(product), 600)
    before = {name: answer(product, name) for name in ("stdlib", "stdlib-preferences")}
    assert before["stdlib"] != before["stdlib-preferences"], "if not another text, then of another probability"
    rows = lineage(product, "stdlib")
    assert [row[0] for row in rows[:2]] == ["InferenceService/stdlib", "FineTuneJob/stdlib-docstrings"]
    assert {"RLHFJob/stdlib-preferences", "PretrainJob/stdlib-base"} <= {row[0] for row in rows}
    for job in (pretrain, taught, aligned):
        product.kubectl("delete", job.kind, job.name)
    assert {name: answer(product, name)[0] for name in before} == {name: text for name, (text, _) in before.items()}


def lineage(product: Product, name: str) -> list[list[str]]:
    """The rows of `trireme lineage`."""
    command = [sys.executable, "-m", "trireme_cli", "lineage", name, "--kubeconfig", str(product.local.kubeconfig)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()[1:]]


def test_what_the_examples_of_the_line_say_of_each_other_is_true() -> None:
    documents = [manifest(path.name) for path in sorted(LINE.glob("*.yaml"))]
    assert [d["kind"] for d in documents] == ["PretrainJob", "FineTuneJob", "RLHFJob", "InferenceService"]
    held_out = {json.dumps(d["spec"]["data"]["validation"]["sources"][0]["include"]) for d in documents[:3]}
    learned = {json.dumps(d["spec"]["data"]["sources"][0]["include"]) for d in documents[:3]}
    assert len(held_out) == len(learned) == 1, "one division for all stages"
