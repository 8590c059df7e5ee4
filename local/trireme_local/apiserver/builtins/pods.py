"""Pods: defaults, the fields that may change, graceful deletion and what `kubectl get pods` prints."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

from .. import errors
from ..errors import Cause
from ..resource import Column, WithStatus
from ..store import Obj
from ..tables import AGE, NAME, human_duration, object_age, parse_time
from . import pod_rules
from .placement_rules import PREFERRED
from .quantities import total

FINISHED = ("Succeeded", "Failed")


def _default_probe(probe: Obj) -> None:
    for key, value in (("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)):
        if not probe.get(key):
            probe[key] = value
    if "httpGet" in probe:
        probe["httpGet"].setdefault("path", "/")
        probe["httpGet"].setdefault("scheme", "HTTP")
    if "grpc" in probe:
        probe["grpc"].setdefault("service", "")


def _pull_policy(image: str) -> str:
    last = image.rsplit("/", 1)[-1]
    if "@" in last:
        return "IfNotPresent"
    return "Always" if ":" not in last or last.endswith(":latest") else "IfNotPresent"


def _default_container(container: Obj) -> None:
    container.setdefault("resources", {})
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    if container.get("image"):
        container.setdefault("imagePullPolicy", _pull_policy(container["image"]))
    for port in container.get("ports", ()):
        port.setdefault("protocol", "TCP")
    for variable in container.get("env", ()):
        if field_ref := variable.get("valueFrom", {}).get("fieldRef"):
            field_ref.setdefault("apiVersion", "v1")
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        if name in container:
            _default_probe(container[name])
    limits = container["resources"].get("limits", {})
    for name, value in limits.items():
        container["resources"].setdefault("requests", {}).setdefault(name, value)


def _default_volume(volume: Obj) -> None:
    if not set(volume) - {"name"}:
        volume["emptyDir"] = {}
    for name in ("secret", "configMap", "downwardAPI", "projected"):
        if name in volume:
            volume[name].setdefault("defaultMode", 0o644)
    if "hostPath" in volume:
        volume["hostPath"].setdefault("type", "")
    items = list(volume.get("downwardAPI", {}).get("items", ()))
    for source in volume.get("projected", {}).get("sources", ()):
        if "serviceAccountToken" in source:
            source["serviceAccountToken"].setdefault("expirationSeconds", 3600)
        items += source.get("downwardAPI", {}).get("items", ())
    for item in items:
        if "fieldRef" in item:
            item["fieldRef"].setdefault("apiVersion", "v1")


def containers(spec: Obj) -> list[Obj]:
    """Init containers and containers of a pod spec."""
    return [*spec.get("initContainers", ()), *spec.get("containers", ())]


def default_spec(spec: Obj) -> None:
    """Fill in the defaults of a pod spec, in place."""
    for key, value in (
        ("restartPolicy", "Always"),
        ("dnsPolicy", "ClusterFirst"),
        ("schedulerName", "default-scheduler"),
        ("terminationGracePeriodSeconds", 30),
        ("enableServiceLinks", True),
    ):
        spec.setdefault(key, value)
    spec.setdefault("securityContext", {})
    for container in containers(spec):
        _default_container(container)
    for volume in spec.get("volumes", ()):
        _default_volume(volume)
    for item in spec.get("affinity", {}).get("nodeAffinity", {}).get(PREFERRED, ()):
        item.setdefault("preference", {})
    for toleration in spec.get("tolerations", ()):
        if toleration.get("key") and not toleration.get("operator"):
            toleration["operator"] = "Equal"
    if spec.get("serviceAccountName"):
        spec["serviceAccount"] = spec["serviceAccountName"]
    elif spec.get("serviceAccount"):
        spec["serviceAccountName"] = spec["serviceAccount"]


def qos_class(spec: Obj) -> str:
    """Guaranteed, Burstable or BestEffort, from the containers' requests and limits of cpu and memory."""
    guaranteed, any_set = True, False
    for container in containers(spec):
        resources = container.get("resources", {})
        requests, limits = resources.get("requests", {}), resources.get("limits", {})
        for name in ("cpu", "memory"):
            if name in requests or name in limits:
                any_set = True
            if name not in limits or total([requests.get(name, limits[name])]) != total([limits[name]]):
                guaranteed = False
    return "BestEffort" if not any_set else "Guaranteed" if guaranteed else "Burstable"


class PodStrategy(WithStatus):
    """Pods."""

    returns_deleted = True
    columns = (
        NAME,
        Column("Ready", description="The aggregate readiness state of this pod for accepting traffic."),
        Column("Status", description="The aggregate status of the containers in this pod."),
        Column("Restarts", description="The number of times the containers in this pod have been restarted."),
        AGE,
        Column("IP", description="IP address allocated to the pod.", priority=1),
        Column("Node", description="Name of the node that runs the pod.", priority=1),
        Column("Nominated Node", description="Node that preemption chose.", priority=1),
        Column("Readiness Gates", description="Conditions evaluated for pod readiness.", priority=1),
    )

    def default(self, obj: Obj) -> None:
        default_spec(obj.setdefault("spec", {}))

    def prepare_create(self, obj: Obj) -> None:
        obj["status"] = {"phase": "Pending", "qosClass": qos_class(obj.get("spec", {}))}
        if obj["spec"].get("schedulingGates"):
            obj["status"]["conditions"] = [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "SchedulingGated",
                    "message": "Scheduling is blocked due to non-empty scheduling gates",
                    "lastProbeTime": None,
                    "lastTransitionTime": None,
                }
            ]

    def validate(self, obj: Obj) -> list[Cause]:
        return pod_rules.validate_spec(obj.get("spec", {}))

    def validate_update(self, new: Obj, old: Obj) -> list[Cause]:
        """Only images, deadlines (downwards), added tolerations and removed gates may change."""
        found = pod_rules.validate_spec(new["spec"])
        allowed, before = copy.deepcopy(new["spec"]), old["spec"]
        for kind in ("containers", "initContainers"):
            if len(allowed.get(kind, ())) != len(before.get(kind, ())):
                return [errors.forbidden_value(f"spec.{kind}", "pod updates may not add or remove containers"), *found]
            for mine, theirs in zip(allowed.get(kind, ()), before.get(kind, ()), strict=True):
                mine["image"] = theirs.get("image")
        found += _deadline(allowed, before)
        if "activeDeadlineSeconds" in before:
            allowed["activeDeadlineSeconds"] = before["activeDeadlineSeconds"]
        else:
            allowed.pop("activeDeadlineSeconds", None)
        tolerations = before.get("tolerations", [])
        if any(item not in allowed.get("tolerations", []) for item in tolerations):
            text = "existing toleration can not be modified except its tolerationSeconds"
            found.append(errors.forbidden_value("spec.tolerations", text))
        _keep(allowed, before, "tolerations")
        gates = before.get("schedulingGates", [])
        if any(gate not in gates for gate in allowed.get("schedulingGates", [])):
            text = "only deletion is allowed, but found new scheduling gate"
            found.append(errors.forbidden_value("spec.schedulingGates", text))
        _keep(allowed, before, "schedulingGates")
        if allowed != before:
            text = (
                "pod updates may not change fields other than `spec.containers[*].image`,"
                "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to "
                "existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was "
                "previously negative)"
            )
            changed = sorted(key for key in set(allowed) | set(before) if allowed.get(key) != before.get(key))
            found.append(errors.forbidden_value("spec", f"{text}; changed: {', '.join(changed)}"))
        return found

    def validate_status_update(self, new: Obj, old: Obj) -> list[Cause]:
        phase = new.get("status", {}).get("phase", "")
        if phase not in ("", "Pending", "Running", "Succeeded", "Failed", "Unknown"):
            supported = ("Failed", "Pending", "Running", "Succeeded", "Unknown")
            return [errors.unsupported_value("status.phase", phase, supported)]
        return []

    def prepare_status_update(self, new: Obj, old: Obj) -> None:
        super().prepare_status_update(new, old)
        if qos := old.get("status", {}).get("qosClass"):
            new.setdefault("status", {})["qosClass"] = qos

    def generation_changed(self, new: Obj, old: Obj) -> bool:
        return False

    def grace_seconds(self, obj: Obj, asked: int | None) -> int | None:
        spec = obj.get("spec", {})
        period = asked if asked is not None else spec.get("terminationGracePeriodSeconds", 30)
        if not spec.get("nodeName") or obj.get("status", {}).get("phase") in FINISHED:
            return 0
        return 1 if period < 0 else int(period)

    def cells(self, obj: Obj) -> list[Any]:
        return _cells(obj)


def _keep(new: Obj, old: Obj, key: str) -> None:
    if key in old:
        new[key] = old[key]
    else:
        new.pop(key, None)


def _deadline(new: Obj, old: Obj) -> list[Cause]:
    before, after = old.get("activeDeadlineSeconds"), new.get("activeDeadlineSeconds")
    if before is None or after == before:
        return []
    if after is None:
        text = "must not update from a positive integer to nil value"
        return [errors.invalid_value("spec.activeDeadlineSeconds", None, text)]
    if after > before:
        text = "must be less than or equal to previous value"
        return [errors.invalid_value("spec.activeDeadlineSeconds", after, text)]
    return []


def _waiting_reason(statuses: list[Obj], initial: str) -> tuple[str, bool]:
    """The STATUS word that the containers give, and whether one of them runs."""
    reason, running = initial, False
    for status in reversed(statuses):
        state = status.get("state", {})
        waiting, terminated = state.get("waiting", {}), state.get("terminated")
        if waiting.get("reason"):
            reason = waiting["reason"]
        elif terminated is not None:
            signal, code = terminated.get("signal"), terminated.get("exitCode", 0)
            reason = terminated.get("reason") or (f"Signal:{signal}" if signal else f"ExitCode:{code}")
        elif status.get("ready") and "running" in state:
            running = True
    return reason, running


def _init_reason(spec: Obj, status: Obj) -> str:
    statuses = status.get("initContainerStatuses") or []
    for index, item in enumerate(statuses):
        state = item.get("state", {})
        terminated = state.get("terminated")
        if terminated is not None and terminated.get("exitCode") == 0:
            continue
        if terminated is not None:
            signal, code = terminated.get("signal"), terminated.get("exitCode", 0)
            return "Init:" + (terminated.get("reason") or (f"Signal:{signal}" if signal else f"ExitCode:{code}"))
        reason = state.get("waiting", {}).get("reason", "")
        if reason and reason != "PodInitializing":
            return f"Init:{reason}"
        return f"Init:{index}/{len(spec.get('initContainers', ()))}"
    return ""


def _cells(obj: Obj) -> list[Any]:
    spec, status, meta = obj.get("spec", {}), obj.get("status", {}), obj["metadata"]
    statuses = status.get("containerStatuses") or []
    reason = status.get("reason") or status.get("phase", "")
    if any(
        item.get("type") == "PodScheduled" and item.get("reason") == "SchedulingGated"
        for item in status.get("conditions") or []
    ):
        reason = "SchedulingGated"
    init = _init_reason(spec, status) if spec.get("initContainers") else ""
    if init:
        reason = init
    else:
        reason, running = _waiting_reason(statuses, reason)
        if reason == "Completed" and running:
            reason = "Running"
    if meta.get("deletionTimestamp"):
        reason = "Unknown" if status.get("reason") == "NodeLost" else "Terminating"
    ready = sum(1 for item in statuses if item.get("ready") and "running" in item.get("state", {}))
    restarts = sum(item.get("restartCount", 0) for item in statuses)
    finished = [
        item["lastState"]["terminated"]["finishedAt"]
        for item in statuses
        if item.get("lastState", {}).get("terminated", {}).get("finishedAt")
    ]
    shown = str(restarts)
    if restarts and finished:
        past = (datetime.now(UTC) - parse_time(max(finished))).total_seconds()
        shown = f"{restarts} ({human_duration(past)} ago)"
    gates = spec.get("readinessGates") or []
    true_types = {item["type"] for item in status.get("conditions") or [] if item.get("status") == "True"}
    return [
        meta["name"],
        f"{ready}/{len(spec.get('containers', ()))}",
        reason,
        shown,
        object_age(obj),
        status.get("podIP") or "<none>",
        spec.get("nodeName") or "<none>",
        status.get("nominatedNodeName") or "<none>",
        f"{sum(gate['conditionType'] in true_types for gate in gates)}/{len(gates)}" if gates else "<none>",
    ]
