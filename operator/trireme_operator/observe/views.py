"""From raw objects of the API to what decide() sees."""

import logging
from datetime import datetime
from math import ceil
from typing import Any

from pydantic import ValidationError

from trireme.resources.base import read_quantity
from trireme.resources.status import JobStatus
from trireme_operator.build.names import CONTAINER, LABEL_SLOT, TOKEN_ENV
from trireme_operator.decide import JobView, NodeView, PodView
from trireme_operator.decide.model import Quantities

log = logging.getLogger(__name__)

JsonObject = dict[str, Any]

STARTING = ("", "PodInitializing", "ContainerCreating")


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
    # The trainer's: a webhook may have added others.
    state = next(
        (c.get("state") or {} for c in status.get("containerStatuses") or [] if c.get("name") == CONTAINER), {}
    )
    ended, waiting = state.get("terminated") or {}, state.get("waiting") or {}
    if waiting.get("reason", "") in STARTING and not ended and "running" not in state:
        waiting = _held_up_by(status) or waiting
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
        gated=tuple(gate["name"] for gate in spec.get("schedulingGates") or ()),
        disruption=disruption.get("message", "") if disruption.get("status") == "True" else "",
        token_secret=_token_secret(spec),
    )


def _token_secret(spec: JsonObject) -> str:
    env = [e for c in spec.get("containers") or [] if c.get("name") == CONTAINER for e in c.get("env") or []]
    sources = [(e.get("valueFrom") or {}).get("secretKeyRef") or {} for e in env if e["name"] == TOKEN_ENV]
    return str(sources[0].get("name", "")) if sources else ""


def _held_up_by(status: JsonObject) -> JsonObject:
    """Why the trainer does not start yet when that lies with another container, an init container first."""
    others = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    waits = [(c.get("state") or {}).get("waiting") or {} for c in others]
    return next((w for w in waits if w.get("reason", "") not in STARTING), {})


def milli(quantities: dict[str, Any]) -> dict[str, int]:
    """Quantities in thousandths, rounded up; what cannot be read is left out.

    The pods of the whole cluster are read here: an odd one among them must not stop the jobs.
    """
    found = {}
    for name, value in quantities.items():
        try:
            found[name] = ceil(read_quantity(str(value)) * 1000)
        except (ValueError, ArithmeticError):
            log.debug("resource %s: %r is not a quantity", name, value)
    return found


def requests_of(raw: JsonObject) -> dict[str, int]:
    """What a pod requests of its node.

    As k8s.io/component-helpers/resource counts it: containers and sidecars together, or an init container with the
    sidecars before it, whichever is more; requests of the whole pod replace both; overhead is added.
    """
    spec = raw.get("spec") or {}
    total: dict[str, int] = {}
    for container in spec.get("containers") or []:
        _add(total, _amounts(container.get("resources")))
    sidecars: dict[str, int] = {}
    initial: dict[str, int] = {}
    for container in spec.get("initContainers") or []:
        amounts = _amounts(container.get("resources"))
        if container.get("restartPolicy") == "Always":
            _add(total, amounts)
            _add(sidecars, amounts)
            amounts = {}
        for name in {*amounts, *sidecars}:
            initial[name] = max(initial.get(name, 0), amounts.get(name, 0) + sidecars.get(name, 0))
    for name, amount in initial.items():
        total[name] = max(total.get(name, 0), amount)
    total |= _amounts(spec.get("resources"))
    _add(total, milli(spec.get("overhead") or {}))
    return total


def _add(total: dict[str, int], amounts: dict[str, int]) -> None:
    for name, amount in amounts.items():
        total[name] = total.get(name, 0) + amount


def _amounts(resources: JsonObject | None) -> dict[str, int]:
    given = resources or {}
    return milli({**(given.get("limits") or {}), **(given.get("requests") or {})})


def node_view(raw: JsonObject, used: Quantities) -> NodeView:
    """A node, of which its pods use this much."""
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
