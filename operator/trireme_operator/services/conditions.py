"""The four conditions of a service and the state derived from them. docs/inferenceservice.md lists every reason."""

from collections.abc import Iterable
from typing import Literal

from trireme.protocol.serving import ReplicaState
from trireme.resources.inference import MODEL_JOB
from trireme.resources.inference_status import ServiceCondition, ServiceState, ServiceStatus
from trireme.resources.status import Condition
from trireme_operator.decide import upstreams
from trireme_operator.decide.model import to_time
from trireme_operator.services.model import ObservedService, ServingPod, Wanted

Value = Literal["True", "False", "Unknown"]
Finding = tuple[Value, str, str]

ENGINE_REASONS = ("EngineFailed", "EngineEnded")
"""Of a replica whose model is here and well, and whose vLLM is not."""
IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
CONFIG_REASONS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


def put(status: ServiceStatus, observed: ObservedService, kind: ServiceCondition, finding: Finding) -> ServiceStatus:
    """`status` with one condition set; its transition time moves only when its value changes."""
    value, reason, message = finding
    old = status.condition(kind)
    since = old.last_transition_time if old is not None and old.status == value else to_time(int(observed.now))
    new = Condition(
        type=kind.value,
        status=value,
        observed_generation=observed.service.generation,
        last_transition_time=since,
        reason=reason,
        message=message[:4096],
    )
    by_type = {c.type: c for c in status.conditions} | {kind.value: new}
    return status.model_copy(update={"conditions": [by_type[k.value] for k in ServiceCondition if k.value in by_type]})


def refresh(status: ServiceStatus, observed: ObservedService, wanted: Wanted) -> ServiceStatus:
    """All conditions and the state of an accepted service, for a status that has the pods as they are."""
    findings = {
        ServiceCondition.ACCEPTED: ("True", "Valid", ""),
        ServiceCondition.MODEL_AVAILABLE: model_available(status, observed, wanted),
        ServiceCondition.ADAPTERS_LOADED: adapters_loaded(status, observed, wanted),
        ServiceCondition.READY: ready(status, observed, wanted),
    }
    for kind, finding in findings.items():
        status = put(status, observed, kind, finding)
    return status.model_copy(update={"state": state(status, wanted)})


def unaccepted(status: ServiceStatus, observed: ObservedService, reason: str, message: str) -> ServiceStatus:
    """A service whose spec is refused: what it serves goes on, and nothing else is done."""
    status = put(status, observed, ServiceCondition.ACCEPTED, ("False", reason, message))
    for kind in (ServiceCondition.MODEL_AVAILABLE, ServiceCondition.ADAPTERS_LOADED, ServiceCondition.READY):
        if status.condition(kind) is None:
            status = put(status, observed, kind, ("Unknown", "NotAccepted", ""))
    answers = holds(status, ServiceCondition.READY)
    return status.model_copy(update={"state": ServiceState.DEGRADED if answers else ServiceState.REJECTED})


def holds(status: ServiceStatus, kind: ServiceCondition) -> bool:
    """Whether a condition is True."""
    condition = status.condition(kind)
    return condition is not None and condition.status == "True"


def model_available(status: ServiceStatus, observed: ObservedService, wanted: Wanted) -> Finding:
    """Whether the files of the wanted model are there, verified, and can be served."""
    waited_for = [u for u in observed.upstreams if u.field == MODEL_JOB]
    if (found := upstreams.finding(status.inputs, waited_for)) is not None:
        return "False", *found
    assert wanted.target is not None
    pods = observed.of_revision(wanted.target.revision)
    reports = [report for pod in pods if (report := observed.reports.get(pod.uid)) is not None]
    if any(r.state in (ReplicaState.LOADING, ReplicaState.READY) for r in reports):
        return "True", "Verified", f"{wanted.target.model.uri}, digest {wanted.target.model.digest or 'not known yet'}"
    for report in reports:
        if report.state == ReplicaState.FAILED:
            if report.reason in ENGINE_REASONS:
                return "True", "Verified", wanted.target.model.uri
            return "False", report.reason, report.message
    return "Unknown", "NotCheckedYet", f"no replica has the files of {wanted.target.model.uri} yet"


def adapters_loaded(status: ServiceStatus, observed: ObservedService, wanted: Wanted) -> Finding:
    """Whether every replica that answers has the adapters of the spec, by vLLM's own word."""
    if not wanted.spec.adapters:
        extra = [p.name for p in status.pods if p.ready and p.adapters]
        return ("False", "Unloading", ", ".join(extra)) if extra else ("True", "NoneWanted", "")
    waited_for = [u for u in observed.upstreams if u.field != MODEL_JOB]
    if (found := upstreams.finding(status.inputs, waited_for)) is not None:
        return "False", *found
    answering = [pod for pod in status.pods if pod.ready]
    by_name = {pod.name: pod.uid for pod in observed.pods}
    for pod in answering:
        report = observed.reports.get(by_name.get(pod.name, ""))
        for refused in report.refused if report is not None else ():
            return "False", refused.reason, f"{refused.name}: {refused.message} ({pod.name})"
    if not answering:
        return "Unknown", "NoReplicaReady", "no replica answers"
    asked = {adapter.id for adapter in wanted.adapters}
    behind = [pod.name for pod in answering if _adapter_ids(observed, by_name.get(pod.name, "")) != asked]
    if behind:
        return "False", "Loading", f"not yet as wanted on {', '.join(behind)}"
    return "True", "Loaded", f"{len(asked)} on each of {len(answering)} replicas"


def _adapter_ids(observed: ObservedService, pod_uid: str) -> set[str] | None:
    report = observed.reports.get(pod_uid)
    return None if report is None else {adapter.id for adapter in report.adapters}


def ready(status: ServiceStatus, observed: ObservedService, wanted: Wanted) -> Finding:
    """Whether the Service leads to a replica that answers."""
    count, replicas = status.ready_replicas, wanted.spec.replicas
    behind = _behind(status, observed, wanted)
    if count:
        text = f"{count} of {replicas} replicas answer" + (f"; {behind[1]}" if behind else "")
        return "True", behind[0] if behind else "Serving" if count >= replicas else "FewerReplicas", text
    if replicas == 0:
        return "False", "ScaledToZero", "spec.replicas is 0"
    if wanted.target is None:
        return "False", "WaitingForModel", "see ModelAvailable"
    if observed.obstacle is not None:
        return "False", observed.obstacle.reason, observed.obstacle.message
    return "False", *why_not_ready(observed, observed.of_revision(wanted.target.revision))


def _behind(status: ServiceStatus, observed: ObservedService, wanted: Wanted) -> tuple[str, str] | None:
    """What is to be said of a revision that is wanted while another one serves."""
    target = wanted.target
    if target is None or target.revision == status.serving_revision:
        return None
    pods = observed.of_revision(target.revision)
    count = sum(pod.ready for pod in pods)
    reason, message = why_not_ready(observed, [pod for pod in pods if not pod.ready])
    if observed.obstacle is not None:
        reason, message = observed.obstacle.reason, observed.obstacle.message
    text = f"revision {target.revision} takes over once it is ready: {count} of {wanted.spec.replicas} are"
    return "Updating", f"{text} ({reason}: {message})" if reason != "Starting" else text


def why_not_ready(observed: ObservedService, pods: Iterable[ServingPod]) -> tuple[str, str]:
    """Reason and message of replicas that do not answer; what waiting does not cure comes first."""
    problems = [d.problem for d in observed.deployments if d.problem]
    found = [_why(observed, pod) for pod in pods]
    if problems and not found:
        return "PodNotCreated", problems[0]
    return min(found, key=lambda why: why[0] == "Starting", default=("Starting", "no pod exists yet"))


def _why(observed: ObservedService, pod: ServingPod) -> tuple[str, str]:
    report = observed.reports.get(pod.uid)
    if report is not None and report.reason:
        return report.reason, f"{pod.name}: {report.message}"
    if pod.waiting_reason in IMAGE_REASONS:
        return "ImagePullFailed", f"{pod.name}: {pod.waiting_reason}: {pod.waiting_message}"
    if pod.waiting_reason in CONFIG_REASONS:
        return "ContainerConfigInvalid", f"{pod.name}: {pod.waiting_message}"
    if pod.waiting_reason == "CrashLoopBackOff" or (pod.ended and report is None):
        return "ContainerEnded", f"{pod.name}: {pod.ended or pod.waiting_message}"
    if pod.unschedulable:
        return "Unschedulable", f"{pod.name}: {pod.unschedulable}"
    return "Starting", f"{pod.name} is {report.state.value if report else 'not heard of yet'}"


def state(status: ServiceStatus, wanted: Wanted) -> ServiceState:
    """The one word of an accepted service."""
    model = status.condition(ServiceCondition.MODEL_AVAILABLE)
    loaded = status.condition(ServiceCondition.ADAPTERS_LOADED)
    answer = status.condition(ServiceCondition.READY)
    assert model is not None
    assert loaded is not None
    assert answer is not None
    if answer.status == "True":
        if model.status == "False" or (loaded.status == "False" and loaded.reason not in ("Loading", "Unloading")):
            return ServiceState.DEGRADED
        if answer.reason == "Serving":
            return ServiceState.READY if loaded.status == "True" else ServiceState.UPDATING
        return ServiceState.UPDATING if answer.reason == "Updating" else ServiceState.DEGRADED
    if wanted.spec.replicas == 0:
        return ServiceState.STOPPED
    if wanted.target is None:
        return ServiceState.WAITING
    waits = answer.reason in ("Starting", "Unschedulable", "ImagePullFailed", "ContainerConfigInvalid")
    return ServiceState.STARTING if waits and model.status != "False" else ServiceState.FAILED
