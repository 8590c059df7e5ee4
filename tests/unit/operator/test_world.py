"""What the operator takes for a job's own, and what it makes of everything else in the cluster."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from gang_machine import SPEC

from trireme.resources import kind_named
from trireme_operator.decide import Contact, Policy
from trireme_operator.observe.queue import JobKey
from trireme_operator.observe.world import World

KEY = JobKey("PretrainJob", "team", "j")
Json = dict[str, Any]


@dataclass
class NoAgents:
    contacts: dict[str, Contact] = field(default_factory=dict)


def job() -> Json:
    metadata = {
        "namespace": "team",
        "name": "j",
        "uid": "job-1",
        "resourceVersion": "1",
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    return {"apiVersion": "trireme.dev/v1alpha1", "kind": "PretrainJob", "metadata": metadata, "spec": SPEC}


def pod(name: str = "j-0", slot: int = 0, owner: str | None = "job-1", namespace: str = "team", **spec: Any) -> Json:
    labels = {"trireme.dev/job-name": "j", "trireme.dev/job-uid": "job-1", "trireme.dev/slot": str(slot)}
    metadata: Json = {"namespace": namespace, "name": name, "uid": f"{namespace}-{name}", "resourceVersion": "5"}
    if owner is not None:
        metadata["ownerReferences"] = [{"uid": owner, "controller": True}]
    return {"kind": "Pod", "metadata": {**metadata, "labels": labels}, "spec": spec}


def world(*pods: Json) -> World:
    kind = kind_named("PretrainJob")
    found = World({"PretrainJob": kind}, NoAgents(), Policy())
    found.jobs["PretrainJob"].replace([job()], set())
    found.pods.replace(pods, set())
    return found


def pods_seen(*pods: Json) -> list[str]:
    observed = world(*pods).observe(KEY)
    assert observed is not None
    return [view.name for view in observed.pods]


def test_the_pods_that_a_job_controls_are_its_slots() -> None:
    assert pods_seen(pod("j-0", 0), pod("j-1", 1)) == ["j-0", "j-1"]


@pytest.mark.parametrize(
    "foreign",
    [
        pod(owner=None),
        pod(owner="another"),
        pod(namespace="elsewhere"),
        pod(name="x-0"),
        pod(name="j-0", slot=1),
    ],
    ids=["no owner", "another owner", "another namespace", "another name", "another slot"],
)
def test_labels_alone_make_no_pod_a_slot_that_is_sent_the_token(foreign: Json) -> None:
    assert pods_seen(foreign) == []
