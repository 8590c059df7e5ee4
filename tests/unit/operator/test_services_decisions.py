"""A service's life as decisions: what is written and done, in which order, with no cluster."""

from dataclasses import replace
from typing import Any

import pytest

from trireme.protocol.serving import LoadedAdapter, ModelSource, RefusedAdapter, ReplicaReport, ReplicaState
from trireme.resources.inference_status import ServiceCondition, ServiceState, ServiceStatus
from trireme.resources.references import JobReference
from trireme.resources.status import JobState, ModelStatus
from trireme_operator.decide.model import Upstream, UpstreamView
from trireme_operator.services import names
from trireme_operator.services.decide import decide
from trireme_operator.services.model import (
    BudgetView,
    CreateRevision,
    DeleteBudget,
    DeleteRevision,
    DeploymentView,
    Direct,
    EndpointView,
    EnsureAdapters,
    EnsureBudget,
    EnsureEndpoint,
    MoveBudget,
    ObservedService,
    ScaleRevision,
    ServiceAction,
    ServicePolicy,
    ServiceView,
    ServingPod,
)

Json = dict[str, Any]
DIGEST, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def spec(**changes: Any) -> Json:
    return {
        "model": {"uri": "s3://models/llama"},
        "task": "completion",
        "replicas": 2,
        "pods": {"accelerator": {"kind": "cpu"}},
        **changes,
    }


class Stage:
    """A cluster in miniature: actions take effect at once, pods become ready when a test says so."""

    def __init__(self, given: Json) -> None:
        self.spec = given
        self.generation = 1
        self.status = ServiceStatus()
        self.deployments: dict[str, DeploymentView] = {}
        self.pods: dict[str, ServingPod] = {}
        self.reports: dict[str, ReplicaReport] = {}
        self.endpoint: EndpointView | None = None
        self.budget: BudgetView | None = None
        self.adapters: tuple[str, ...] = ()
        self.jobs: dict[str, Upstream] = {}
        self.policy = ServicePolicy("serving:1")
        self.done: list[ServiceAction] = []
        self._version = 0

    def edit(self, **changes: Any) -> None:
        self.spec = {**self.spec, **changes}
        self.generation += 1

    def job(self, field: str, name: str, found: UpstreamView | None, kind: str = "PretrainJob") -> None:
        self.jobs[field] = Upstream(field, JobReference(kind=kind, name=name), found)  # type: ignore[arg-type]

    def observed(self) -> ObservedService:
        view = ServiceView(
            "InferenceService", "default", "llama", "u" * 36, "1", self.generation, False, self.spec, self.status
        )
        return ObservedService(
            now=1000.0,
            service=view,
            pods=tuple(self.pods.values()),
            reports=self.reports,
            deployments=tuple(self.deployments.values()),
            endpoint=self.endpoint,
            budget=self.budget,
            upstreams=tuple(self.jobs.values()),
            policy=self.policy,
        )

    def settle(self) -> None:
        """Passes until one asks for nothing new."""
        for _ in range(40):
            before = self._all()
            decision = decide(self.observed())
            assert decision.status is None or not decision.actions, "a status or actions, never both"
            if decision.status is not None:
                self.status = decision.status
            for action in decision.actions:
                self.done.append(action)
                self._apply(action)
            if before == self._all():
                return
        raise AssertionError("it never comes to rest")

    def _all(self) -> tuple[Any, ...]:
        return (self.status, dict(self.deployments), self.endpoint, self.budget, self.adapters, dict(self.pods))

    def _apply(self, action: ServiceAction) -> None:
        self._version += 1
        match action:
            case EnsureAdapters(adapters):
                self.adapters = tuple(f"{a.name}={a.uri}" for a in adapters)
            case EnsureEndpoint(revision):
                self.endpoint = self.endpoint or EndpointView(str(self._version), "10.0.0.9", 8000, revision)
            case Direct(version, revision, port):
                assert self.endpoint is not None
                assert self.endpoint.resource_version == version
                self.endpoint = EndpointView(str(self._version), "10.0.0.9", port, revision)
            case CreateRevision(target):
                name = names.deployment("llama", target.revision)
                made = DeploymentView(name, name, str(self._version), target.revision, self.spec["replicas"])
                self.deployments.setdefault(name, made)
                self._pods(made)
            case ScaleRevision(name, version, replicas):
                assert self.deployments[name].resource_version == version
                self.deployments[name] = replace(
                    self.deployments[name], replicas=replicas, resource_version=str(self._version)
                )
                self._pods(self.deployments[name])
            case DeleteRevision(name, _, version):
                gone = self.deployments.pop(name)
                assert gone.resource_version == version
                assert self.endpoint is not None
                assert self.endpoint.revision != gone.revision, "what the Service leads to is never deleted"
                self.pods = {n: p for n, p in self.pods.items() if p.revision != gone.revision}
            case EnsureBudget(revision):
                self.budget = self.budget or BudgetView("llama-b", "b", str(self._version), revision)
            case MoveBudget(_, version, revision):
                assert self.budget is not None
                assert self.budget.resource_version == version
                self.budget = replace(self.budget, resource_version=str(self._version), revision=revision)
            case DeleteBudget():
                self.budget = None

    def _pods(self, deployment: DeploymentView) -> None:
        for index in range(64):
            name = f"{deployment.name}-{index}"
            if index >= deployment.replicas:
                self.pods.pop(name, None)
            else:
                self.pods.setdefault(name, ServingPod(name, name, deployment.revision))

    def of(self, revision: str | None) -> list[str]:
        return [name for name, pod in self.pods.items() if pod.revision == revision]

    def report(self, name: str, state: ReplicaState, **more: Any) -> None:
        model = ModelSource(uri="s3://models/llama", digest=DIGEST)
        self.reports[name] = ReplicaReport(
            service_uid="u" * 36, revision=self.pods[name].revision, state=state, model=model, **more
        )
        self.pods[name] = replace(self.pods[name], ready=state == ReplicaState.READY)

    def all_ready(self, revision: str | None, **more: Any) -> None:
        for name in self.of(revision):
            self.report(name, ReplicaState.READY, **more)

    @property
    def target(self) -> str:
        assert self.status.target is not None
        return self.status.target.revision

    def condition(self, kind: ServiceCondition) -> tuple[str, str]:
        found = self.status.condition(kind)
        assert found is not None
        return found.status, found.reason


def serving(**changes: Any) -> Stage:
    """A service whose replicas all answer."""
    stage = Stage(spec(**changes))
    stage.settle()
    stage.all_ready(stage.target)
    stage.settle()
    assert stage.status.state == ServiceState.READY, stage.status.conditions
    return stage


def test_a_service_comes_up_and_tells_its_address_model_and_replicas() -> None:
    stage = Stage(spec())
    stage.settle()
    assert stage.status.state == ServiceState.STARTING
    assert stage.condition(ServiceCondition.READY) == ("False", "Starting")
    assert {c.type for c in stage.status.conditions} == {c.value for c in ServiceCondition}
    stage.all_ready(stage.target)
    stage.settle()
    status = stage.status
    assert (status.state, status.replicas, status.ready_replicas) == (ServiceState.READY, 2, 2)
    assert (status.url, status.serving_revision) == ("http://10.0.0.9:8000/v1", stage.target)
    assert status.model is not None
    assert (status.model.uri, status.model.digest) == ("s3://models/llama", DIGEST)
    assert {pod.state for pod in status.pods} == {"Ready"}


def test_the_service_leads_to_a_new_revision_only_when_all_of_it_answers_and_the_old_one_goes_after_that() -> None:
    stage = serving()
    old = stage.target
    stage.done.clear()
    stage.edit(maxConcurrency=8)
    stage.settle()
    new = stage.target
    assert new != old
    assert stage.status.state == ServiceState.UPDATING
    assert [type(a) for a in stage.done if not isinstance(a, EnsureAdapters)] == [CreateRevision]
    assert stage.budget is not None
    assert stage.budget.revision == old, "pods that come up are none of those that serve"
    stage.report(stage.of(new)[0], ReplicaState.READY)
    stage.settle()
    assert stage.status.serving_revision == old
    stage.all_ready(new)
    stage.settle()
    changes = [type(a) for a in stage.done if not isinstance(a, EnsureAdapters)]
    assert changes == [CreateRevision, Direct, DeleteRevision, MoveBudget]
    assert stage.budget.revision == new
    assert stage.status.serving_revision == new
    assert not stage.of(old)
    assert stage.status.state == ServiceState.READY


def test_a_revision_that_never_answers_leaves_the_old_one_serving_and_is_removed_when_the_spec_turns_back() -> None:
    stage = serving()
    old = stage.target
    stage.edit(model={"uri": "s3://models/broken"})
    stage.settle()
    for name in stage.of(stage.target):
        stage.report(name, ReplicaState.FAILED, reason="TokenizerMissing", message="tokenizer.json: missing")
    stage.settle()
    assert stage.condition(ServiceCondition.MODEL_AVAILABLE) == ("False", "TokenizerMissing")
    assert stage.condition(ServiceCondition.READY) == ("True", "Updating")
    assert stage.status.state == ServiceState.DEGRADED
    assert stage.status.model is not None
    assert stage.status.model.uri == "s3://models/llama"
    stage.edit(model={"uri": "s3://models/llama"})
    stage.settle()
    assert stage.target == old
    assert {p.revision for p in stage.pods.values()} == {old}
    assert stage.status.state == ServiceState.READY


def test_replicas_adapters_and_port_change_in_place() -> None:
    stage = serving(adapterLimits={"count": 4})
    old = stage.target
    stage.edit(replicas=3, port=9000, adapters=[{"name": "fr", "uri": "s3://models/fr"}])
    stage.settle()
    assert stage.target == old
    assert stage.adapters == ("fr=s3://models/fr",)
    assert stage.status.url == "http://10.0.0.9:9000/v1"
    assert len(stage.of(old)) == 3


def test_the_first_adapter_of_a_service_without_room_for_any_makes_a_revision() -> None:
    stage = serving()
    old = stage.target
    stage.edit(adapters=[{"name": "fr", "uri": "s3://models/fr"}])
    stage.settle()
    assert stage.target != old


def test_an_upgrade_of_the_operator_starts_no_revision() -> None:
    stage = serving()
    old = stage.target
    stage.policy = ServicePolicy("serving:2")
    stage.settle()
    assert stage.target == old
    stage.edit(maxConcurrency=8)
    stage.settle()
    assert stage.status.target is not None
    assert stage.status.target.image == "serving:2"


def test_to_zero_and_back() -> None:
    stage = serving()
    stage.edit(replicas=0)
    stage.settle()
    assert (stage.status.state, stage.pods) == (ServiceState.STOPPED, {})
    stage.edit(replicas=1)
    stage.settle()
    stage.all_ready(stage.target)
    stage.settle()
    assert stage.status.state == ServiceState.READY


def test_drains_are_held_to_one_replica_at_a_time_where_there_is_another_one() -> None:
    stage = serving(replicas=1)
    assert stage.budget is None, "it could only keep the node from being drained"
    stage.edit(replicas=2)
    stage.settle()
    assert stage.budget is not None
    assert stage.budget.revision == stage.target
    stage.edit(replicas=0)
    stage.settle()
    assert stage.budget is None


def test_a_service_whose_users_have_a_budget_of_their_own_gets_none_and_no_revision_for_it() -> None:
    stage = serving()
    old = stage.target
    stage.edit(disruptionBudget=False)
    stage.settle()
    assert (stage.budget, stage.target) == (None, old)


def finished(uid: str, uri: str, digest: str) -> UpstreamView:
    return UpstreamView(uid, state=JobState.SUCCEEDED, model=ModelStatus(uri=uri, digest=digest))


def test_a_job_is_waited_for_and_recorded_and_may_then_go() -> None:
    stage = Stage(spec(model={"job": {"name": "teacher"}}))
    stage.job("model.job", "teacher", None)
    stage.settle()
    assert stage.status.state == ServiceState.WAITING
    assert stage.condition(ServiceCondition.MODEL_AVAILABLE) == ("False", "WaitingForUpstream")
    assert not stage.deployments
    stage.job("model.job", "teacher", UpstreamView("j1", state=JobState.RUNNING))
    stage.settle()
    stage.job("model.job", "teacher", None)
    stage.settle()
    assert stage.condition(ServiceCondition.MODEL_AVAILABLE) == ("False", "UpstreamDeleted")
    stage.job("model.job", "teacher", UpstreamView("j2", state=JobState.FAILED, failure="NaNLoss: step 3"))
    stage.settle()
    assert stage.condition(ServiceCondition.MODEL_AVAILABLE) == ("False", "UpstreamFailed")
    stage.job("model.job", "teacher", finished("j3", "s3://runs/teacher/model/a1", DIGEST))
    stage.settle()
    stage.all_ready(stage.target)
    stage.settle()
    released = stage.status
    stage.job("model.job", "teacher", None)
    stage.settle()
    assert stage.status == released
    assert released.state == ServiceState.READY
    assert released.inputs[0].digest == DIGEST
    assert released.target is not None
    assert released.target.model.digest == DIGEST


def test_another_job_in_the_spec_is_waited_for_while_the_released_model_serves() -> None:
    stage = Stage(spec(model={"job": {"name": "first"}}))
    stage.job("model.job", "first", finished("j1", "s3://runs/first/model/a1", DIGEST))
    stage.settle()
    stage.all_ready(stage.target)
    stage.settle()
    old = stage.target
    stage.edit(model={"job": {"name": "second"}})
    stage.job("model.job", "second", UpstreamView("j2", state=JobState.RUNNING))
    stage.settle()
    assert stage.condition(ServiceCondition.MODEL_AVAILABLE) == ("False", "WaitingForUpstream")
    assert stage.condition(ServiceCondition.READY)[0] == "True"
    assert stage.target == old
    stage.job("model.job", "second", finished("j2", "s3://runs/second/model/a1", OTHER))
    stage.settle()
    assert stage.target != old
    assert [i.name for i in stage.status.inputs] == ["second"]


def test_adapters_are_loaded_when_every_replica_says_so_and_the_truth_is_told_of_each() -> None:
    stage = Stage(spec(adapters=[{"name": "fr", "uri": "s3://models/fr"}]))
    stage.settle()
    ensured = next(a for a in stage.done if isinstance(a, EnsureAdapters))
    loaded = LoadedAdapter(name="fr", id=ensured.adapters[0].id, uri="s3://models/fr", digest=OTHER)
    first, second = stage.of(stage.target)
    stage.report(first, ReplicaState.READY, adapters=[loaded])
    stage.report(second, ReplicaState.READY, adapters=[])
    stage.settle()
    assert stage.condition(ServiceCondition.ADAPTERS_LOADED) == ("False", "Loading")
    assert [[a.name for a in pod.adapters] for pod in stage.status.pods] == [["fr"], []]
    stage.report(second, ReplicaState.READY, adapters=[loaded])
    stage.settle()
    assert stage.condition(ServiceCondition.ADAPTERS_LOADED) == ("True", "Loaded")
    del stage.reports[second]  # its process was killed
    stage.pods[second] = replace(stage.pods[second], ready=False)
    stage.settle()
    assert [[a.name for a in pod.adapters] for pod in stage.status.pods] == [["fr"], []]
    assert stage.condition(ServiceCondition.READY) == ("True", "FewerReplicas")


def test_a_refused_adapter_is_said_with_its_reason() -> None:
    stage = Stage(spec(adapters=[{"name": "fr", "uri": "s3://models/fr"}]))
    stage.settle()
    message = "adapter_config.json: trained on s3://models/other; served is s3://models/llama"
    refused = RefusedAdapter(name="fr", uri="s3://models/fr", reason="AdapterBaseMismatch", message=message)
    stage.all_ready(stage.target, refused=[refused])
    stage.settle()
    assert stage.condition(ServiceCondition.ADAPTERS_LOADED) == ("False", "AdapterBaseMismatch")
    assert stage.status.state == ServiceState.DEGRADED


def test_a_spec_that_is_refused_later_leaves_what_serves_alone() -> None:
    stage = serving()
    stage.done.clear()
    stage.edit(chatTemplate="{{ x }}")
    stage.settle()
    assert stage.condition(ServiceCondition.ACCEPTED) == ("False", "InvalidSpec")
    assert stage.condition(ServiceCondition.READY)[0] == "True"
    assert not stage.done


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        ({"waiting_reason": "ErrImagePull", "waiting_message": "run `make setup-serving`"}, "ImagePullFailed"),
        (
            {"waiting_reason": "CreateContainerConfigError", "waiting_message": "no secret"},
            "ContainerConfigInvalid",
        ),
        ({"waiting_reason": "CrashLoopBackOff", "ended": "exit code 1"}, "ContainerEnded"),
        ({"unschedulable": "0/3 nodes"}, "Unschedulable"),
    ],
)
def test_what_keeps_pods_from_answering_is_said(pod: Json, reason: str) -> None:
    stage = Stage(spec(replicas=1))
    stage.settle()
    (name,) = stage.of(stage.target)
    stage.pods[name] = replace(stage.pods[name], **pod)
    stage.settle()
    assert stage.condition(ServiceCondition.READY) == ("False", reason)


def test_an_adapter_with_the_models_own_name_is_refused() -> None:
    stage = Stage(spec(adapters=[{"name": "llama", "uri": "s3://models/fr"}]))
    stage.settle()
    assert stage.status.state == ServiceState.REJECTED
    assert stage.condition(ServiceCondition.ACCEPTED) == ("False", "InvalidSpec")
