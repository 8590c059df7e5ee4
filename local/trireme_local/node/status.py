"""A pod's status from its containers' states, as the kubelet computes it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from trireme_local.events import now_text
from trireme_local.kube import JsonObject


@dataclass
class ContainerRecord:
    """What is reported of one container."""

    name: str
    image: str
    state: JsonObject
    last_state: JsonObject = field(default_factory=dict)
    restart_count: int = 0
    ready: bool = False
    started: bool | None = None
    image_id: str = ""
    container_id: str = ""

    def to_status(self) -> JsonObject:
        """The ContainerStatus object."""
        status: JsonObject = {
            "name": self.name,
            "image": self.image,
            "imageID": self.image_id,
            "state": self.state,
            "lastState": self.last_state,
            "restartCount": self.restart_count,
            "ready": self.ready,
            "started": bool(self.started),
        }
        if self.container_id:
            status["containerID"] = self.container_id
        return status

    @classmethod
    def from_status(cls, status: JsonObject) -> ContainerRecord:
        """The record that an API object reports."""
        return cls(
            name=status["name"],
            image=status.get("image", ""),
            state=status.get("state") or {"waiting": {"reason": "ContainerCreating"}},
            last_state=status.get("lastState") or {},
            restart_count=status.get("restartCount", 0),
            image_id=status.get("imageID", ""),
            container_id=status.get("containerID", ""),
        )

    @property
    def terminated(self) -> JsonObject | None:
        """The terminated state, None while waiting or running."""
        state = self.state.get("terminated")
        return dict(state) if state is not None else None


def terminated(
    exit_code: int, reason: str, started_at: str | None, message: str = "", container_id: str = ""
) -> JsonObject:
    """A terminated container state that ended now."""
    state: JsonObject = {"exitCode": exit_code, "reason": reason, "finishedAt": now_text()}
    state["startedAt"] = started_at or state["finishedAt"]
    if message:
        state["message"] = message
    if container_id:
        state["containerID"] = container_id
    return {"terminated": state}


def waiting(reason: str, message: str = "") -> JsonObject:
    """A waiting container state."""
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


def should_restart(restart_policy: str, exit_code: int) -> bool:
    """Whether a container that exited is started again."""
    return restart_policy == "Always" or (restart_policy == "OnFailure" and exit_code != 0)


def phase_of(spec: JsonObject, init: Sequence[ContainerRecord], main: Sequence[ContainerRecord]) -> str:
    """The pod's phase. Source: k8s.io/kubernetes/pkg/kubelet.getPhase."""
    policy = spec.get("restartPolicy", "Always")
    sidecars = {item["name"] for item in spec.get("initContainers") or [] if item.get("restartPolicy") == "Always"}
    for record in init:
        if record.name in sidecars:
            continue
        ended = record.terminated
        if ended is None:
            return "Pending"
        if ended["exitCode"] != 0:
            return "Failed" if policy == "Never" else "Pending"
    if any("running" in record.state for record in main):
        return "Running"
    ended_all = [record.terminated for record in main]
    if all(ended is not None for ended in ended_all):
        codes = [ended["exitCode"] for ended in ended_all if ended is not None]
        if policy == "Always":
            return "Running"
        if not any(codes):
            return "Succeeded"
        return "Failed" if policy == "Never" else "Running"
    # Waiting after a first run (back-off, about to restart) is Running; before one it is Pending.
    return "Running" if all(record.terminated or record.last_state for record in main) else "Pending"


def _condition(kind: str, holds: bool, reason: str = "", message: str = "") -> JsonObject:
    condition: JsonObject = {"type": kind, "status": "True" if holds else "False"}
    if reason:
        condition["reason"] = reason
    if message:
        condition["message"] = message
    return condition


def _initialized(record: ContainerRecord, sidecar: bool) -> bool:
    """Whether what comes after an init container need not wait for it."""
    return bool(record.started) if sidecar else (record.terminated or {}).get("exitCode") == 0


def conditions_of(
    phase: str,
    init: Sequence[ContainerRecord],
    main: Sequence[ContainerRecord],
    initialized: bool,
    gates: Sequence[bool] = (),
    sidecars: Collection[str] = (),
) -> list[JsonObject]:
    """The conditions that the kubelet owns, without times; `gates` are the readiness gates' values.

    `sidecars` are the init containers that run beside the others: they have to be started, and then ready.
    """
    done = phase in ("Succeeded", "Failed")
    pending_init = [record.name for record in init if not _initialized(record, record.name in sidecars)]
    unready = [record.name for record in init if record.name in sidecars and not record.ready]
    unready += [record.name for record in main if not record.ready]
    if initialized:
        first = _condition("Initialized", True, "PodCompleted" if phase == "Succeeded" else "")
    else:
        first = _condition(
            "Initialized",
            False,
            "ContainersNotInitialized",
            f"containers with incomplete status: [{' '.join(pending_init)}]",
        )
    if phase == "Succeeded":
        ready_reason, message = "PodCompleted", ""
    elif phase == "Failed":
        ready_reason, message = "PodFailed", ""
    else:
        ready_reason = "ContainersNotReady"
        message = f"containers with unready status: [{' '.join(unready)}]"
    containers_ready = not unready and not done
    conditions = [first]
    if containers_ready:
        conditions.append(_condition("ContainersReady", True))
    else:
        conditions.append(_condition("ContainersReady", False, ready_reason, message))
    if containers_ready and all(gates):
        conditions.append(_condition("Ready", True))
    elif containers_ready:
        conditions.append(
            _condition("Ready", False, "ReadinessGatesNotReady", "corresponding condition of pod readiness gate")
        )
    else:
        conditions.append(_condition("Ready", False, ready_reason, message))
    return conditions


def with_times(conditions: Sequence[JsonObject], previous: Sequence[JsonObject]) -> list[JsonObject]:
    """`conditions` with lastTransitionTime: the previous one where the status has not changed."""
    known = {item["type"]: item for item in previous}
    result = []
    for condition in conditions:
        before = known.get(condition["type"])
        same = before is not None and before["status"] == condition["status"] and before.get("lastTransitionTime")
        time = before["lastTransitionTime"] if before is not None and same else now_text()
        result.append({**condition, "lastProbeTime": None, "lastTransitionTime": time})
    return result
