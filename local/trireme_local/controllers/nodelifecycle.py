"""Node lifecycle: nodes that fall silent become Unknown and tainted, and taints evict pods."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from trireme_local.events import EventRecorder, now_text
from trireme_local.informer import Informer, key_of
from trireme_local.kube import (
    NETWORK_ERRORS,
    NODES,
    PODS,
    STRATEGIC_PATCH,
    ApiException,
    JsonObject,
    KubeClient,
    is_status,
)
from trireme_local.quantities import is_finished
from trireme_local.selectors import tolerates

log = logging.getLogger(__name__)

UNREACHABLE = "node.kubernetes.io/unreachable"
NOT_READY = "node.kubernetes.io/not-ready"
UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
TICK_SECONDS = 1.0
UNKNOWN_CONDITIONS = ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure")


@dataclass
class Heartbeat:
    """The newest sign of life of a node, and when this process saw it (its own monotonic clock)."""

    sign: tuple[str, str]
    seen_seconds: float


def ready_status(node: JsonObject) -> str:
    """True, False or Unknown: the node's Ready condition."""
    for condition in (node.get("status") or {}).get("conditions") or []:
        if condition["type"] == "Ready":
            return str(condition["status"])
    return "Unknown"


def wanted_taints(node: JsonObject) -> list[JsonObject]:
    """The node's taints with those of its Ready condition and cordon as they should be."""
    spec = node.get("spec") or {}
    owned = {
        (NOT_READY, "NoSchedule"),
        (NOT_READY, "NoExecute"),
        (UNREACHABLE, "NoSchedule"),
        (UNREACHABLE, "NoExecute"),
        (UNSCHEDULABLE, "NoSchedule"),
    }
    present = {(taint["key"], taint["effect"]): taint for taint in spec.get("taints") or []}
    status = ready_status(node)
    wanted: list[tuple[str, str]] = []
    if status != "True":
        key = NOT_READY if status == "False" else UNREACHABLE
        wanted += [(key, "NoSchedule"), (key, "NoExecute")]
    if spec.get("unschedulable"):
        wanted.append((UNSCHEDULABLE, "NoSchedule"))
    taints = [taint for pair, taint in present.items() if pair not in owned]
    for key, effect in wanted:
        new = {"key": key, "effect": effect, "timeAdded": now_text()}
        taints.append(present.get((key, effect), new))
    return taints


def eviction_time(pod: JsonObject, taints: list[JsonObject], default_seconds: float) -> float | None:
    """Unix time at which NoExecute taints remove the pod; None when they never do.

    A pod without any toleration for not-ready or unreachable gets `default_seconds`, which an API server with
    the DefaultTolerationSeconds admission has written into the pod.
    """
    earliest: float | None = None
    for taint in taints:
        if taint["effect"] != "NoExecute":
            continue
        added = taint.get("timeAdded")
        start = datetime.fromisoformat(added.replace("Z", "+00:00")).timestamp() if added else 0.0
        matching = [item for item in pod["spec"].get("tolerations") or [] if tolerates(item, taint)]
        if not matching:
            wait_seconds = default_seconds if taint["key"] in (NOT_READY, UNREACHABLE) else 0.0
        else:
            limits = [item["tolerationSeconds"] for item in matching if item.get("tolerationSeconds") is not None]
            if not limits:
                continue
            wait_seconds = float(max(0, min(limits)))
        earliest = start + wait_seconds if earliest is None else min(earliest, start + wait_seconds)
    return earliest


class NodeLifecycle:
    """Marks silent nodes, keeps their taints, evicts pods that do not tolerate them."""

    def __init__(
        self,
        client: KubeClient,
        pods: Informer,
        nodes: Informer,
        leases: Informer,
        recorder: EventRecorder,
        *,
        grace_seconds: float,
        default_toleration_seconds: float,
    ) -> None:
        self._client = client
        self._pods, self._nodes, self._leases = pods, nodes, leases
        self._recorder = recorder
        self._grace_seconds = grace_seconds
        self._default_toleration_seconds = default_toleration_seconds
        self._heartbeats: dict[str, Heartbeat] = {}
        self._wake = asyncio.Event()
        nodes.handlers.append(lambda old, new: self._wake.set())

    async def run(self) -> None:
        """Look at every node each second until cancelled."""
        for informer in (self._pods, self._nodes, self._leases):
            await informer.synced.wait()
        last = time.monotonic()
        while True:
            self._wake.clear()
            now = time.monotonic()
            self._excuse(now - last)
            last = now
            for node in list(self._nodes.store.values()):
                try:
                    await self._visit(node, now)
                except ApiException as error:
                    log.warning("node %s: %r", node["metadata"]["name"], error)
                except NETWORK_ERRORS as error:
                    log.warning("node %s: the API server does not answer: %r", node["metadata"]["name"], error)
                    self._excuse(self._grace_seconds, deaf=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._wake.wait()

    def _excuse(self, elapsed_seconds: float, deaf: bool = False) -> None:
        """Count nobody's silence for a time in which this process did not run, or could not hear anybody.

        It was stopped or starved when its tick came late; it is deaf while the API server does not answer.
        """
        now = time.monotonic()
        if deaf or self._deaf or elapsed_seconds > 2 * TICK_SECONDS:
            for heartbeat in self._heartbeats.values():
                heartbeat.seen_seconds = min(now, heartbeat.seen_seconds + elapsed_seconds)

    @property
    def _deaf(self) -> bool:
        return not (self._leases.connected and self._nodes.connected)

    async def _visit(self, node: JsonObject, now: float) -> None:
        name = node["metadata"]["name"]
        silent_seconds = now - self._heard(node, now).seen_seconds
        if silent_seconds > self._grace_seconds and not self._deaf and ready_status(node) != "Unknown":
            node = await self._mark_unknown(node, silent_seconds)
        if node["metadata"].get("deletionTimestamp"):
            return
        taints = wanted_taints(node)
        if taints != ((node.get("spec") or {}).get("taints") or []):
            version = node["metadata"]["resourceVersion"]
            body = {"metadata": {"resourceVersion": version}, "spec": {"taints": taints or None}}
            try:
                node = await self._client.patch(NODES, None, name, body)
            except ApiException as error:
                if not is_status(error, 404, 409):
                    raise
                return
        await self._visit_pods(node, taints)

    def _heard(self, node: JsonObject, now: float) -> Heartbeat:
        name = node["metadata"]["name"]
        lease = self._leases.store.get(("kube-node-lease", name))
        renewed = ((lease or {}).get("spec") or {}).get("renewTime") or ""
        conditions = (node.get("status") or {}).get("conditions") or []
        reported = next((item.get("lastHeartbeatTime") or "" for item in conditions if item["type"] == "Ready"), "")
        sign = (renewed, reported if ready_status(node) != "Unknown" else "")
        heartbeat = self._heartbeats.get(name)
        if heartbeat is None:
            heartbeat = self._heartbeats[name] = Heartbeat(sign, now)
        elif heartbeat.sign != sign:
            only_ours = heartbeat.sign[0] == sign[0] and not sign[1]
            heartbeat.sign = sign
            if not only_ours:
                heartbeat.seen_seconds = now
        return heartbeat

    async def _mark_unknown(self, node: JsonObject, silent_seconds: float) -> JsonObject:
        name = node["metadata"]["name"]
        log.info("node %s silent for %.1f s: Ready=Unknown", name, silent_seconds)
        known = {item["type"]: item for item in (node.get("status") or {}).get("conditions") or []}
        conditions = [
            {
                **known.get(kind, {"type": kind, "lastHeartbeatTime": None}),
                "status": "Unknown",
                "reason": "NodeStatusUnknown",
                "message": "Kubelet stopped posting node status.",
                "lastTransitionTime": now_text(),
            }
            for kind in UNKNOWN_CONDITIONS
        ]
        body = {"status": {"conditions": conditions}}
        answer = await self._client.patch(NODES, None, name, body, sub="status", content_type=STRATEGIC_PATCH)
        self._recorder.record(node, "Normal", "NodeNotReady", f"Node {name} status is now: NodeNotReady")
        return answer

    async def _visit_pods(self, node: JsonObject, taints: list[JsonObject]) -> None:
        name = node["metadata"]["name"]
        lost = ready_status(node) != "True"
        executing = [taint for taint in taints if taint["effect"] == "NoExecute"]
        if not lost and not executing:
            return
        for pod in list(self._pods.store.values()):
            if pod["spec"].get("nodeName") != name or is_finished(pod):
                continue
            if lost:
                await self._mark_not_ready(pod)
            when = eviction_time(pod, executing, self._default_toleration_seconds)
            if when is not None and when <= datetime.now(UTC).timestamp():
                await self._evict(pod)

    async def _mark_not_ready(self, pod: JsonObject) -> None:
        """A pod on a lost node is not ready, whatever it last said."""
        conditions = (pod.get("status") or {}).get("conditions") or []
        ready = next((item for item in conditions if item["type"] == "Ready"), None)
        if ready is None or ready["status"] != "True":
            return
        condition = {**ready, "status": "False", "reason": "NodeNotReady", "lastTransitionTime": now_text()}
        await self._pod_condition(pod, condition)
        self._recorder.record(pod, "Warning", "NodeNotReady", "Node is not ready")

    async def _evict(self, pod: JsonObject) -> None:
        if pod["metadata"].get("deletionTimestamp"):
            return
        namespace, name = key_of(pod)
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            "lastTransitionTime": now_text(),
        }
        await self._pod_condition(pod, condition)
        try:
            await self._client.delete(PODS, namespace, name, uid=pod["metadata"]["uid"])
        except ApiException as error:
            if not is_status(error, 404, 409):
                raise
            return
        message = f"Marking for deletion Pod {namespace}/{name}"
        self._recorder.record(pod, "Normal", "TaintManagerEviction", message)

    async def _pod_condition(self, pod: JsonObject, condition: JsonObject) -> None:
        namespace, name = key_of(pod)
        body = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": {"conditions": [condition]}}
        try:
            await self._client.patch(PODS, namespace, name, body, sub="status", content_type=STRATEGIC_PATCH)
        except ApiException as error:
            if not is_status(error, 404, 409):
                raise
