"""From raw objects of the API to what decide() sees."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from trireme.resources.base import parse_quantity
from trireme.resources.status import JobStatus
from trireme_operator.build.names import LABEL_SLOT
from trireme_operator.decide import JobView, NodeView, PodView
from trireme_operator.decide.model import Quantities

JsonObject = dict[str, Any]


class UnreadableStatus(ValueError):
    """A job's status is not what this operator writes."""


def timestamp(text: str | None) -> float:
    """Seconds since the epoch of an API time; 0 when there is none."""
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def job_view(raw: JsonObject) -> JobView:
    """A job. Raises UnreadableStatus."""
    metadata = raw["metadata"]
    try:
        status = JobStatus.model_validate(raw.get("status") or {})
    except ValidationError as error:
        raise UnreadableStatus(f"{metadata.get('namespace')}/{metadata['name']}: {error}") from error
    return JobView(
        kind=raw["kind"],
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        generation=metadata.get("generation", 0),
        created=timestamp(metadata["creationTimestamp"]),
        deleting=bool(metadata.get("deletionTimestamp")),
        spec=raw.get("spec") or {},
        status=status,
    )


def pod_view(raw: JsonObject) -> PodView | None:
    """A pod of a job; None when it is not one of ours."""
    metadata, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    slot = (metadata.get("labels") or {}).get(LABEL_SLOT, "")
    if not slot.isdigit():
        return None
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    container: JsonObject = next(iter(status.get("containerStatuses") or []), {})
    state = container.get("state") or {}
    ended, waiting = state.get("terminated") or {}, state.get("waiting") or {}
    scheduled = conditions.get("PodScheduled", {})
    disruption = conditions.get("DisruptionTarget", {})
    return PodView(
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        slot=int(slot),
        phase=status.get("phase", "Pending"),
        node=spec.get("nodeName"),
        address=status.get("podIP"),
        deleting=bool(metadata.get("deletionTimestamp")),
        delete_by=timestamp(metadata.get("deletionTimestamp")) or None,  # the API server adds the grace
        ready=conditions.get("Ready", {}).get("status") == "True",
        created_at=timestamp(metadata.get("creationTimestamp")),
        bound_at=timestamp(scheduled.get("lastTransitionTime") if scheduled.get("status") == "True" else None),
        reason=status.get("reason", ""),
        message=status.get("message") or ended.get("message", ""),
        exit_code=ended.get("exitCode"),
        termination_reason=ended.get("reason", ""),
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        unschedulable=scheduled.get("message", "") if scheduled.get("status") == "False" else "",
        disruption=disruption.get("message", "") if disruption.get("status") == "True" else "",
    )


def milli(quantities: dict[str, Any]) -> dict[str, int]:
    """Quantities in thousandths."""
    return {name: int(parse_quantity(str(value)) * 1000) for name, value in quantities.items()}


def requests_of(raw: JsonObject) -> Quantities:
    """What a pod requests of its node: the sum over containers, or the largest init container."""
    spec = raw.get("spec") or {}
    total: dict[str, int] = {}
    for container in spec.get("containers") or []:
        for name, amount in _container(container).items():
            total[name] = total.get(name, 0) + amount
    for container in spec.get("initContainers") or []:
        always = container.get("restartPolicy") == "Always"
        for name, amount in _container(container).items():
            total[name] = total.get(name, 0) + amount if always else max(total.get(name, 0), amount)
    for name, amount in milli(spec.get("overhead") or {}).items():
        total[name] = total.get(name, 0) + amount
    return total


def _container(container: JsonObject) -> dict[str, int]:
    resources = container.get("resources") or {}
    return milli({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def node_views(nodes: Iterable[JsonObject], pods: Iterable[JsonObject]) -> tuple[NodeView, ...]:
    """Nodes with what is free on them."""
    used: dict[str, dict[str, int]] = {}
    for pod in pods:
        node = (pod.get("spec") or {}).get("nodeName")
        if not node or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            continue
        taken = used.setdefault(node, {})
        for name, amount in {**requests_of(pod), "pods": 1000}.items():
            taken[name] = taken.get(name, 0) + amount
    return tuple(_node_view(raw, used.get(raw["metadata"]["name"], {})) for raw in nodes)


def _node_view(raw: JsonObject, used: dict[str, int]) -> NodeView:
    spec, status = raw.get("spec") or {}, raw.get("status") or {}
    ready = next((c["status"] for c in status.get("conditions") or [] if c["type"] == "Ready"), "Unknown")
    allocatable = {"pods": 110_000, **milli(status.get("allocatable") or {})}
    return NodeView(
        name=raw["metadata"]["name"],
        ready=ready == "True",
        schedulable=not spec.get("unschedulable", False),
        labels=raw["metadata"].get("labels") or {},
        taints=tuple(spec.get("taints") or ()),
        free={name: amount - used.get(name, 0) for name, amount in allocatable.items()},
        allocatable=allocatable,
    )
