"""A manifest or its surroundings are wrong: one clear reason, soon, and nothing stored is harmed."""

import hashlib
import os
import shutil
import time
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from product import Product, TestedJob, wait_for
from tiny_job import tiny_job

from trireme.resources.status import JobState, JobStatus

REASON_SECONDS = 10.0
"""On a computer with nothing else to do; a busy one takes longer in proportion."""
REFUSAL_SECONDS = 2.0


def stored_objects(bucket: Path) -> dict[str, str]:
    """Every object's digest by its key."""
    files = (p for p in bucket.parent.rglob("*") if p.is_file())
    return {str(p.relative_to(bucket.parent)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def wait_reason(job: TestedJob, reason: str) -> tuple[JobStatus, float]:
    """Until InputsReady=False for this reason; the status and the seconds since the pod started."""

    def look() -> JobStatus | None:
        status = job.status
        found = status.condition("InputsReady")
        return status if found and (found.status, found.reason) == ("False", reason) else None

    status: JobStatus = wait_for(f"{job.name}: InputsReady=False {reason}", look, 60)
    return status, time.time() - started_at(job)


def allowed_seconds() -> float:
    """REASON_SECONDS, stretched by how many processes wait for each core."""
    return REASON_SECONDS * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def started_at(job: TestedJob) -> float:
    """When the kubelet took the pod of slot 0 (seconds since the epoch)."""
    return datetime.fromisoformat(job.pods()[f"{job.name}-0"]["status"]["startTime"]).timestamp()


CASES: dict[str, tuple[dict[str, Any], str, bool]] = {
    "bucket-missing": ({"checkpoint__uri": "s3://no-such-bucket/e2e"}, "BucketNotFound", False),
    "data-missing": ({"data__sources": [{"uri": "s3://trireme/nothing/here/"}]}, "DataNotFound", False),
    "data-empty": ({"data__sources": [{"uri": "s3://trireme/empty/"}]}, "DataEmpty", True),
    "too-few-tokens": ({"data__sources": [{"uri": "s3://trireme/short/"}]}, "NoTokens", True),
    "image-unknown": ({"workers__image": "registry.invalid/none:1"}, "ImagePullFailed", False),
    "secret-missing": (
        {"checkpoint__credentials": {"secretRef": {"name": "no-such-secret"}}},
        "ContainerConfigInvalid",
        False,
    ),
}
LONG = ("too-few-tokens", "secret-missing", "data-empty")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in CASES])
def test_inputs_that_cannot_be_used_are_named_soon(product: Product, name: str) -> None:
    changes, reason, final = CASES[name]
    for folder, text in {"empty": "", "short": "few"}.items():
        (product.bucket / folder).mkdir(exist_ok=True)
        (product.bucket / folder / "document.txt").write_text(text)
    status = refused(product, name, reason, **changes).status
    assert (status.state == "Failed") is final


def test_a_wrong_key_is_named_soon_and_the_job_trains_once_the_secret_is_mended(product: Product) -> None:
    right = product.local.state().store.environment()
    product.write_secret("keys", {**right, "AWS_SECRET_ACCESS_KEY": "wrong"})
    job = refused(product, "wrong-keys", "AccessDenied", checkpoint__credentials={"secretRef": {"name": "keys"}})
    pods = job.pod_uids()
    product.write_secret("keys", right)
    status = job.wait_state(JobState.SUCCEEDED)
    assert job.pod_uids() == pods
    assert (status.gang.attempt, status.checkpoint.step if status.checkpoint else None) == (1, 50)


def refused(product: Product, name: str, reason: str, **changes: Any) -> TestedJob:
    """A job that says soon why it does not train, and has done no harm."""
    before = stored_objects(product.bucket)
    job = product.apply(tiny_job(name, devices=1, steps=50, layout={"tensor": 1}, **changes))
    status, seconds = wait_reason(job, reason)
    assert seconds <= allowed_seconds()
    assert status.progress is None, "no step was trained"
    assert status.gang.attempt == 1
    after = stored_objects(product.bucket)
    assert before.items() <= after.items(), "nothing stored was overwritten"
    return job


def test_a_checkpoint_of_another_model_is_refused_and_left_alone(product: Product, undisturbed: TestedJob) -> None:
    name = f"another-model-{uuid.uuid4().hex[:6]}"
    source, uri = product.bucket / undisturbed.keys.name_prefix, undisturbed.get().raw["spec"]["checkpoint"]["uri"]
    shutil.copytree(source, source.parent / name)
    before = stored_objects(product.bucket)
    changes = {"checkpoint__uri": uri, "model__shape__hidden_size": 32}
    job = product.apply(tiny_job(name, devices=1, steps=50, layout={"tensor": 1}, **changes))
    status, seconds = wait_reason(job, "CheckpointOfAnotherModel")
    assert seconds <= allowed_seconds()
    assert status.state == "Failed"
    assert status.progress is None
    after = stored_objects(product.bucket)
    assert before.items() <= after.items(), "nothing stored was overwritten"


def test_a_plan_that_does_not_fit_is_refused_with_its_numbers_and_without_pods(product: Product) -> None:
    manifest = tiny_job("does-not-fit", devices=1, layout={"tensor": 1}, workers__accelerator={"kind": "h100-sxm"})
    manifest["spec"]["model"] = {"preset": "llama3-70b"}
    began = time.monotonic()
    job = product.apply(manifest)
    job.wait("refused", lambda s: (c := s.condition("Accepted")) and c.status == "False", 30)
    seconds = time.monotonic() - began
    condition = job.status.condition("Accepted")
    assert condition is not None
    assert "GiB" in condition.message
    assert "spec." in condition.message
    assert job.status.state == "Rejected"
    assert job.pods() == {}
    created = datetime.fromisoformat(job.get().raw["metadata"]["creationTimestamp"])
    assert (condition.last_transition_time - created).total_seconds() <= REFUSAL_SECONDS
    assert seconds < 30


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"training__globalBatchSize": 0}, "spec.training.globalBatchSize"),
        ({"workers__env": [{"name": "TRIREME_SLOT", "value": "7"}]}, "spec.workers.env"),
        ({"parallelism": {"engine": "none"}}, "spec.parallelism.engine"),
        ({"training__tokens": 1000}, "exactly one of steps and tokens"),
    ],
)
def test_what_the_schema_can_tell_is_refused_at_apply(product: Product, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(AssertionError, match=field):
        product.apply(tiny_job("refused", devices=1, **changes))
