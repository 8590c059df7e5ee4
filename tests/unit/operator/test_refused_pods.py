"""Pods that the API server does not take: invalid ones refuse the job, others are told and tried again."""

import random
from typing import Any

import pytest
from gang_machine import NODES, SPEC
from sim_cluster import Cluster, FakeApi, Node
from sim_operator import Operator

from trireme.resources.status import ConditionType, JobState, JobStatus
from trireme_operator.apply.api import ApiError


class Refusing(FakeApi):
    """An API server that answers one error to every creation."""

    def __init__(self, cluster: Cluster, error: ApiError) -> None:
        super().__init__(cluster)
        self.error = error
        self.events: list[dict[str, Any]] = []

    async def create(self, path: str, body: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        raise self.error

    async def apply(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if body["kind"] == "Event":
            self.events.append(body)
        return body


def operator_over(error: ApiError) -> tuple[Operator, Refusing]:
    cluster = Cluster(random.Random(0))
    cluster.nodes = {name: Node(name, seen=cluster.now) for name in NODES}
    metadata = {"name": "j", "namespace": "default", "uid": "job-1", "resourceVersion": cluster.bump(), "generation": 1}
    metadata["creationTimestamp"] = "1970-01-12T13:46:40Z"
    cluster.job = {
        "apiVersion": "trireme.dev/v1alpha1",
        "kind": "PretrainJob",
        "metadata": metadata,
        "spec": SPEC,
    }
    operator = Operator(cluster, random.Random(0))
    api = Refusing(cluster, error)
    for part in (operator.executor, operator.executor._events):
        part._api = api  # type: ignore[assignment]
    return operator, api


def status_of(operator: Operator) -> JobStatus:
    return JobStatus.model_validate(operator.cluster.get_job()["status"])


def test_a_pod_that_the_server_calls_invalid_refuses_the_job() -> None:
    message = 'Pod "j-0" is invalid: spec.containers[0].volumeMounts[2].name: Not found: "corpus"'
    operator, api = operator_over(ApiError(422, "Invalid", message))
    operator.reconcile(passes=5)
    status = status_of(operator)
    accepted = status.condition(ConditionType.ACCEPTED)
    assert accepted is not None
    assert (accepted.status, accepted.reason, accepted.message) == ("False", "InvalidPod", f"spec.workers: {message}")
    assert status.state == JobState.REJECTED
    assert status.resolved is None
    assert [event["reason"] for event in api.events] == ["Rejected"]


def test_a_pod_that_is_refused_for_now_leaves_the_job_accepted_and_says_why() -> None:
    operator, api = operator_over(ApiError(403, "Forbidden", "exceeded quota: pods=0"))
    with pytest.raises(ApiError, match="exceeded quota"):
        operator.reconcile(passes=10)
    accepted = status_of(operator).condition(ConditionType.ACCEPTED)
    assert accepted is not None
    assert accepted.status == "True"
    assert ("PodNotCreated", "j-0: exceeded quota: pods=0") in [(e["reason"], e["message"]) for e in api.events]
