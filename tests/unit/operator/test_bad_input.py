"""What cannot work is said where users look: invalid pods, pods refused for now, inputs that fail the job."""

import random
from typing import Any

import pytest
from gang_machine import NODES, SPEC
from sim_cluster import Cluster, FakeApi, Node
from sim_operator import Operator
from sim_scenario import Story

from trireme.protocol import InputsProblem
from trireme.resources.status import ConditionType, JobState, JobStatus
from trireme_operator.apply.api import ApiError
from trireme_operator.decide.kinds import UnreadableSpec


class Refusing(FakeApi):
    """An API server that answers one error to every creation of a pod."""

    def __init__(self, cluster: Cluster, error: ApiError) -> None:
        super().__init__(cluster)
        self.error = error
        self.events: list[dict[str, Any]] = []

    async def create(self, path: str, body: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        if body["kind"] == "Pod":
            raise self.error
        return body

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
    operator, api = operator_over(ApiError(422, "Invalid", message, ("spec.containers[0].volumeMounts[2].name",)))
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


def test_a_job_that_a_newer_operator_accepted_goes_on() -> None:
    story = Story()
    story.until_step(5)
    job = story.cluster.job
    resolved = job["status"]["resolved"]
    spec = {**resolved["spec"], "later": 1, "training": {**resolved["spec"]["training"], "later": {"x": 1}}}
    status = {**job["status"], "resolved": {**resolved, "spec": spec}}
    story.cluster.job = {**job, "status": status}
    story.cluster.edit_job(later=1)
    story.until_ended()
    assert story.status.state == JobState.SUCCEEDED


def test_a_stored_spec_that_nobody_can_read_is_an_error_and_not_silence() -> None:
    story = Story()
    story.until_step(5)
    job = story.cluster.job
    resolved = {**job["status"]["resolved"], "spec": {"model": "?"}}
    story.cluster.job = {**job, "status": {**job["status"], "resolved": resolved}}
    story.cluster.edit_job(model="?")
    with pytest.raises(UnreadableSpec, match="both not valid"):
        story.run(2)


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


class Occupied(FakeApi):
    """An API server on which somebody else has the names of some of a job's objects."""

    def __init__(self, cluster: Cluster, *taken: str) -> None:
        super().__init__(cluster)
        self.taken = set(taken)
        self.written: list[tuple[str, str]] = []
        self.events: list[str] = []

    async def create(self, path: str, body: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        self.written.append((body["kind"], body["metadata"]["name"]))
        if not dry_run and body["kind"] in self.taken:
            raise ApiError(409, "AlreadyExists", f"{body['metadata']['name']} already exists")
        return await super().create(path, body, dry_run=dry_run)

    async def get(self, path: str) -> dict[str, Any]:
        assert "secrets" not in path
        name = path.rsplit("/", 1)[1]
        return {"metadata": {"name": name}} if name != "j" else await super().get(path)

    async def list_all(self, path: str, query: Any = ()) -> list[dict[str, Any]]:
        return [{"metadata": {"name": "j-0", "uid": "foreign"}}]

    async def apply(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert body["kind"] == "Event", "only events are applied"
        self.events.append(body["reason"])
        return body


def over(api: Occupied) -> Operator:
    operator = Operator(api.cluster, random.Random(0))
    for part in (operator.executor, operator.executor._events):
        part._api = api  # type: ignore[assignment]
    return operator


@pytest.mark.parametrize("taken", ["Service", "ConfigMap", "Pod"])
def test_a_name_that_another_owner_has_is_left_alone_and_said_until_it_is_free(taken: str) -> None:
    api = Occupied(cluster_with_a_job(), taken)
    operator = over(api)
    with pytest.raises(ApiError, match="another owner"):
        operator.reconcile(passes=10)
    operator.reconcile(passes=1)
    scheduled = status_of(operator).condition(ConditionType.SCHEDULED)
    assert scheduled is not None
    assert (scheduled.status, scheduled.reason) == ("False", "NameTaken")
    assert taken in scheduled.message
    assert "NameTaken" in api.events
    api.taken.clear()
    operator.reconcile(passes=10)
    operator.deliver()
    operator.reconcile(passes=10)
    scheduled = status_of(operator).condition(ConditionType.SCHEDULED)
    assert scheduled is not None
    assert scheduled.reason == "PodsPending"


def test_a_predecessors_pod_that_is_leaving_is_waited_for_without_a_warning() -> None:
    api = Occupied(cluster_with_a_job(), "Pod")
    owner = {"kind": "PretrainJob", "name": "j", "uid": "job-0", "controller": True}
    leaving = {"metadata": {"name": "j-0", "uid": "old", "ownerReferences": [owner]}}

    async def listed(path: str, query: Any = ()) -> list[dict[str, Any]]:
        return [leaving]

    api.list_all = listed  # type: ignore[method-assign]
    operator = over(api)
    with pytest.raises(ApiError, match="an earlier job of this name"):
        operator.reconcile(passes=10)
    assert "NameTaken" not in api.events


def test_objects_that_exist_already_are_not_written_again() -> None:
    api = Occupied(cluster_with_a_job(), "Service", "ConfigMap", "Secret")
    owner = {"kind": "PretrainJob", "name": "j", "uid": "job-1", "controller": True}

    async def ours(path: str) -> dict[str, Any]:
        name = path.rsplit("/", 1)[1]
        return {"metadata": {"name": name, "ownerReferences": [owner]}} if name != "j" else api.cluster.get_job()

    api.get = ours  # type: ignore[method-assign]
    over(api).reconcile(passes=10)
    assert sorted(api.cluster.pods) == ["j-0", "j-1"]


@pytest.mark.parametrize(
    "error",
    [
        ApiError(422, "Invalid", "ValidatingAdmissionPolicy 'team-labels' denied request: label it"),
        ApiError(400, "BadRequest", 'admission webhook "check.example" denied the request: not now'),
        ApiError(500, "InternalError", 'failed calling webhook "check.example"'),
    ],
    ids=["policy", "webhook", "webhook away"],
)
def test_a_denial_by_policy_is_told_and_tried_again(error: ApiError) -> None:
    operator, _ = operator_over(error)
    with pytest.raises(ApiError):
        operator.reconcile(passes=10)
    operator.reconcile(passes=1)
    status = status_of(operator)
    accepted, scheduled = status.condition(ConditionType.ACCEPTED), status.condition(ConditionType.SCHEDULED)
    assert accepted is not None
    assert accepted.status == "True"
    assert scheduled is not None
    assert (scheduled.reason, scheduled.message) == ("PodNotCreated", f"j-0: {error.message}")
    for part in (operator.executor, operator.executor._events):
        part._api = operator.api  # type: ignore[assignment]
    operator.reconcile(passes=10)
    assert sorted(operator.cluster.pods) == ["j-0", "j-1"]


def test_a_pod_that_cannot_be_decoded_refuses_the_job() -> None:
    message = 'Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal string into Go struct field'
    operator, _ = operator_over(ApiError(400, "BadRequest", message))
    operator.reconcile(passes=5)
    assert status_of(operator).state == JobState.REJECTED
