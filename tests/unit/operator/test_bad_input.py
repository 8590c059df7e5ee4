"""What cannot work is said where users look: invalid pods, pods refused for now, inputs that fail the job."""

import random
from typing import Any

import pytest
from gang_machine import NODES, SPEC
from sim_cluster import Cluster, FakeApi, Node
from sim_operator import Operator

from trireme.protocol import InputsProblem
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


def cluster_with_a_job() -> Cluster:
    cluster = Cluster(random.Random(0))
    cluster.nodes = {name: Node(name, seen=cluster.now) for name in NODES}
    cluster.job = {
        "apiVersion": "trireme.dev/v1alpha1",
        "kind": "PretrainJob",
        "metadata": {
            "name": "j",
            "namespace": "default",
            "uid": "job-1",
            "resourceVersion": cluster.bump(),
            "generation": 1,
            "creationTimestamp": "1970-01-12T13:46:40Z",
        },
        "spec": SPEC,
    }
    return cluster


def operator_over(error: ApiError) -> tuple[Operator, Refusing]:
    cluster = cluster_with_a_job()
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


def test_inputs_that_fail_the_job_are_named_by_inputs_ready_too() -> None:
    cluster = cluster_with_a_job()
    cluster.store.problem = InputsProblem(reason="DataEmpty", message="s3://b/x: no document", retryable=False)
    operator = Operator(cluster, random.Random(0))
    for _ in range(60):
        operator.deliver()
        operator.poll()
        operator.reconcile(passes=6)
        cluster.tick()
    for kind, value in ((ConditionType.FAILED, "True"), (ConditionType.INPUTS_READY, "False")):
        condition = status_of(operator).condition(kind)
        assert condition is not None
        assert (condition.status, condition.reason, condition.message) == (value, "DataEmpty", "s3://b/x: no document")
