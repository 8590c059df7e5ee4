"""What the operator takes for a job's own, and what it makes of everything else in the cluster."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from gang_machine import SPEC

from trireme.resources import job_kind_named
from trireme.resources.status import GangPhase
from trireme_operator.decide import Contact, Policy, decide
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
    kind = job_kind_named("PretrainJob")
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


def node(name: str, cpu: str = "4") -> Json:
    return {"metadata": {"name": name, "uid": name}, "status": {"allocatable": {"cpu": cpu}}}


def on_node(name: str, version: int = 5, phase: str = "Running", node: str = "n1", cpu: str = "1") -> Json:
    raw = pod(name, nodeName=node, containers=[{"resources": {"requests": {"cpu": cpu}}}])
    raw["metadata"]["resourceVersion"] = str(version)
    return {**raw, "status": {"phase": phase}}


def free(found: World) -> dict[str, int]:
    observed = found.observe(KEY)
    assert observed is not None
    assert observed.nodes is not None
    return {view.name: view.free["cpu"] for view in observed.nodes}


def test_what_is_free_follows_pods_and_nodes() -> None:
    found = world(on_node("a"), on_node("b", node="n2", cpu="3"))
    assert found.nodes is not None
    found.nodes.replace([node("n1"), node("n2")], set())
    assert free(found) == {"n1": 3000, "n2": 1000}
    found.pods.handle("MODIFIED", on_node("a", 6, cpu="2"))
    assert free(found) == {"n1": 2000, "n2": 1000}
    found.pods.handle("MODIFIED", on_node("b", 6, "Succeeded", node="n2", cpu="3"))
    found.pods.handle("DELETED", on_node("a", 7, cpu="2"))
    found.nodes.handle("MODIFIED", node("n1", cpu="8"))
    assert free(found) == {"n1": 8000, "n2": 4000}
    found.pods.replace([on_node("c", node="n2")], found.pods.uids())
    found.nodes.replace([node("n2")], found.nodes.uids())
    assert free(found) == {"n2": 3000}


def test_a_pass_parses_no_pod_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = world(*(on_node(f"p{n}") for n in range(50)))
    assert found.nodes is not None
    found.nodes.replace([node("n1", cpu="64")], set())
    assert free(found) == {"n1": 14000}
    monkeypatch.setattr("trireme_operator.observe.usage.requests_of", None)
    monkeypatch.setattr("trireme_operator.observe.usage.node_view", None)
    assert free(found) == {"n1": 14000}
    found.pods.replace([on_node(f"p{n}") for n in range(50)], found.pods.uids())  # the same versions
    assert free(found) == {"n1": 14000}


def test_nothing_is_remembered_of_jobs_that_are_gone() -> None:
    found = world()
    assert found.observe(KEY) is not None
    jobs = found.jobs["PretrainJob"]
    jobs.replace([], jobs.uids())
    found.forget_gone()
    assert found._views == {}


@pytest.mark.parametrize(
    ("ttl", "phase", "seconds"),
    [(None, "Succeeded", None), (100, "Succeeded", 40.0), (60, "Succeeded", 5.0), (None, "Running", 5.0)],
    ids=["for good", "until its time to live is over", "its deletion failed", "a pod is left"],
)
def test_a_finished_job_costs_passes_only_when_something_is_due(
    ttl: int | None, phase: str, seconds: float | None
) -> None:
    kind = job_kind_named("PretrainJob")
    found = world(on_node("j-0", phase=phase))
    observed = found.observe(KEY)
    assert observed is not None
    admitted = decide(observed, kind).status
    assert admitted is not None
    now = admitted.gang.phase_since
    assert now is not None
    status = admitted.model_copy(
        update={
            "completion_time": now,
            "gang": admitted.gang.model_copy(update={"phase": GangPhase.FINISHED}),
        }
    )
    spec = {**SPEC, "ttlSecondsAfterFinished": ttl} if ttl is not None else SPEC
    ended = replace(observed, now=now.timestamp() + 60.0, job=replace(observed.job, spec=spec, status=status))
    assert decide(ended, kind).requeue_seconds == seconds
