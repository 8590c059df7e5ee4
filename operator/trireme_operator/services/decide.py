"""decide(): from everything that was observed of a service to one status write, or to actions. Pure."""

from collections.abc import Iterator
from dataclasses import replace

from trireme.protocol.serving import LoadedAdapter, ReplicaReport
from trireme.resources import INFERENCE_SERVICE, SpecError
from trireme.resources.common import MAX_JOB_NAME_LENGTH
from trireme.resources.inference import InferenceSpec, references
from trireme.resources.inference_status import (
    LoadedAdapterStatus,
    ReplicaStatus,
    ServedModelStatus,
    ServiceStatus,
)
from trireme.resources.status import InputStatus
from trireme_operator.decide import upstreams
from trireme_operator.decide.model import JobEvent
from trireme_operator.services import conditions, names
from trireme_operator.services.model import (
    CreateRevision,
    DeleteBudget,
    DeleteRevision,
    Direct,
    EnsureAdapters,
    EnsureBudget,
    EnsureEndpoint,
    MoveBudget,
    ObservedService,
    ScaleRevision,
    ServiceAction,
    ServiceDecision,
    ServingPod,
    Wanted,
)
from trireme_operator.services.revision import wanted as what_is_wanted

WAIT_SECONDS = 1.0
"""Between two looks at a job that is waited for."""


def decide(observed: ObservedService) -> ServiceDecision:
    """What to do next for one service."""
    if observed.service.deleting:
        return ServiceDecision()
    old = observed.service.status
    try:
        spec = admit(observed)
    except SpecError as error:
        text = f"spec.{error.field}: {error.message}" if error.field else error.message
        refused = _with_pods(old, observed, None)
        refused = conditions.unaccepted(refused, observed, "InvalidSpec", text)
        refused = refused.model_copy(update={"observed_generation": observed.service.generation})
        event = JobEvent("Warning", "Rejected", text)
        return ServiceDecision() if refused == old else ServiceDecision(status=refused, events=(event,))
    inputs, events = _inputs(observed, spec)
    wanted = what_is_wanted(observed, spec, inputs)
    new = old.model_copy(
        update={"inputs": inputs, "target": wanted.target, "observed_generation": observed.service.generation}
    )
    new = conditions.refresh(_with_pods(new, observed, wanted), observed, wanted)
    if new != old:
        told = (*events, *_transitions(old, new))
        return ServiceDecision(status=new, events=told, requeue_seconds=0.0)
    waits = bool(upstreams.outstanding(inputs, observed.upstreams))
    return ServiceDecision(actions=tuple(_actions(observed, wanted)), requeue_seconds=WAIT_SECONDS if waits else None)


def admit(observed: ObservedService) -> InferenceSpec:
    """The spec as its model. Raises SpecError."""
    service = observed.service
    if len(service.name) > MAX_JOB_NAME_LENGTH:
        raise SpecError("", f"metadata.name: {len(service.name)} characters, at most {MAX_JOB_NAME_LENGTH} are allowed")
    spec: InferenceSpec = INFERENCE_SERVICE.parse(service.spec)
    if spec.served_name is None and service.name in {adapter.name for adapter in spec.adapters}:
        raise SpecError("adapters", f"{service.name} is the model's own name: set servedName, or another name here")
    return spec


def _inputs(observed: ObservedService, spec: InferenceSpec) -> tuple[list[InputStatus], tuple[JobEvent, ...]]:
    """What is recorded of the jobs that the spec names now, with what is newly known."""
    named = references(spec)
    kept = [
        known
        for known in observed.service.status.inputs
        if (job := named.get(known.field)) is not None and (job.kind, job.name) == (known.kind, known.name)
    ]
    return upstreams.recorded(kept, observed.upstreams, observed.now)


def _with_pods(status: ServiceStatus, observed: ObservedService, wanted: Wanted | None) -> ServiceStatus:
    """`status` with the pods, the address and what serves as they are."""
    endpoint, target = observed.endpoint, wanted.target if wanted else status.target
    serving = endpoint.revision if endpoint else None
    pods = [_pod(pod, observed.reports.get(pod.uid)) for pod in sorted(observed.pods, key=lambda pod: pod.name)]
    update: dict[str, object] = {
        "pods": pods,
        "replicas": len([pod for pod in observed.pods if not pod.finished]),
        "ready_replicas": sum(pod.ready for pod in observed.of_revision(serving)),
        "selector": ",".join(f"{k}={v}" for k, v in names.selector(observed.service.uid).items()),
        "serving_revision": serving,
        "url": names.url(endpoint.address, endpoint.port) if endpoint and endpoint.address else status.url,
        "dns_name": f"{observed.service.name}.{observed.service.namespace}.svc",
    }
    if target is not None:
        model = _recorded_model(observed, target.revision, target.model)
        update["target"] = target = target.model_copy(update={"model": model})
        if serving == target.revision:
            update["model"] = model
    return status.model_copy(update=update)


def _recorded_model(observed: ObservedService, revision: str, model: ServedModelStatus) -> ServedModelStatus:
    """The model with its digest, which of a URI the first replica that verified it tells."""
    if model.digest is not None:
        return model
    for pod in observed.of_revision(revision):
        report = observed.reports.get(pod.uid)
        if report is not None and report.model is not None and report.model.digest:
            return model.model_copy(update={"digest": report.model.digest})
    return model


def _pod(pod: ServingPod, report: ReplicaReport | None) -> ReplicaStatus:
    known = report or None
    return ReplicaStatus(
        name=pod.name,
        revision=pod.revision,
        node=pod.node,
        ready=pod.ready and not pod.deleting and not pod.finished,
        state=known.state.value if known else "",
        reason=(known.reason if known else pod.waiting_reason)[:256],
        message=(known.message if known else pod.waiting_message or pod.unschedulable)[:4096],
        restarts=pod.restarts,
        adapters=[_loaded(adapter) for adapter in known.adapters] if known else [],
    )


def _loaded(adapter: LoadedAdapter) -> LoadedAdapterStatus:
    return LoadedAdapterStatus(name=adapter.name, uri=adapter.uri, digest=adapter.digest)


def _transitions(old: ServiceStatus, new: ServiceStatus) -> Iterator[JobEvent]:
    """What a user should read of a change."""
    if new.target is not None and (old.target is None or old.target.revision != new.target.revision):
        yield JobEvent("Normal", "RevisionWanted", f"revision {new.target.revision}, model {new.target.model.uri}")
    if new.serving_revision is not None and old.serving_revision != new.serving_revision:
        yield JobEvent("Normal", "RevisionServes", f"revision {new.serving_revision}")
    for condition in new.conditions:
        before = next((c for c in old.conditions if c.type == condition.type), None)
        if before is not None and (before.status, before.reason) == (condition.status, condition.reason):
            continue
        if condition.status == "False" and condition.reason not in ("Starting", "WaitingForModel", "Loading"):
            yield JobEvent("Warning", condition.reason, f"{condition.type}: {condition.message}")


def _actions(observed: ObservedService, wanted: Wanted) -> Iterator[ServiceAction]:
    yield EnsureAdapters(wanted.adapters)
    target, endpoint = wanted.target, observed.endpoint
    if target is None:
        return
    if observed.deployment(target.revision) is None:
        yield CreateRevision(target)
    if endpoint is None:
        yield EnsureEndpoint(target.revision)
        return
    replicas = wanted.spec.replicas
    for deployment in observed.deployments:
        if deployment.deleting:
            continue
        if deployment.revision not in (target.revision, endpoint.revision):
            yield DeleteRevision(deployment.name, deployment.uid, deployment.resource_version)
        elif deployment.replicas != replicas:
            yield ScaleRevision(deployment.name, deployment.resource_version, replicas)
    leads_to = target.revision if takes_over(observed, target.revision, replicas) else endpoint.revision
    if (leads_to, wanted.spec.port) != (endpoint.revision, endpoint.port):
        yield Direct(endpoint.resource_version, leads_to, wanted.spec.port)
    yield from _budget(observed, wanted.spec, endpoint.revision)


def _budget(observed: ObservedService, spec: InferenceSpec, serving: str) -> Iterator[ServiceAction]:
    """Drains take one replica at a time of the revision that serves.

    Of that one alone: pods of a revision that comes up, or never does, serve nobody, and would count as lost. A single
    replica has no budget: it could only keep its node from being drained.
    """
    budget, wanted = observed.budget, spec.disruption_budget and spec.replicas > 1
    if budget is None:
        if wanted:
            yield EnsureBudget(serving)
    elif budget.deleting:
        return
    elif not wanted:
        yield DeleteBudget(budget.name, budget.uid)
    elif budget.revision != serving:
        yield MoveBudget(budget.name, budget.resource_version, serving)


def takes_over(observed: ObservedService, revision: str, replicas: int) -> bool:
    """Whether the Service may lead to the wanted revision: all of it answers, or more of it than of what serves."""
    endpoint = observed.endpoint
    assert endpoint is not None
    count = sum(pod.ready for pod in observed.of_revision(revision))
    before = sum(pod.ready for pod in observed.of_revision(endpoint.revision))
    return endpoint.revision == revision or count >= replicas or (before == 0 and count > 0)


def refused_by_server(observed: ObservedService, message: str) -> ServiceDecision:
    """Accepted=False for a service whose pods the API server calls invalid."""
    status = conditions.unaccepted(observed.service.status, observed, "InvalidPod", f"spec.pods: {message}")
    status = status.model_copy(update={"observed_generation": observed.service.generation})
    return ServiceDecision(status=status)


def with_status(observed: ObservedService, status: ServiceStatus) -> ObservedService:
    """What was observed, with another status."""
    return replace(observed, service=replace(observed.service, status=status))
