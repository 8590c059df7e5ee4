"""The scheduler: binds pods that have no node yet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Sequence

from trireme_local.controllers.scheduling import NodeView, Placement, place
from trireme_local.events import EventRecorder, now_text
from trireme_local.informer import Informer, Key, key_of
from trireme_local.kube import (
    NETWORK_ERRORS,
    PODS,
    STRATEGIC_PATCH,
    ApiException,
    JsonObject,
    KubeClient,
    is_status,
)
from trireme_local.quantities import is_finished

log = logging.getLogger(__name__)

SCHEDULER_NAME = "default-scheduler"
# Unschedulable pods are tried again after any change of a node or pod, and at this interval.
RETRY_SECONDS = 5.0


def _judge(pod: JsonObject, views: Sequence[NodeView]) -> Placement:
    """Where the pod goes. One that cannot be judged is unschedulable: it must not keep those behind it waiting."""
    try:
        return place(pod, views)
    except Exception as error:
        log.exception("pod %s/%s cannot be judged", *key_of(pod))
        return Placement(None, f"the scheduler cannot judge this pod: {error!r}")


class Scheduler:
    """Watches pods and nodes; one pass places every waiting pod, highest priority first, oldest first."""

    def __init__(self, client: KubeClient, pods: Informer, nodes: Informer, recorder: EventRecorder) -> None:
        self._client = client
        self._pods = pods
        self._nodes = nodes
        self._recorder = recorder
        self._wake = asyncio.Event()
        # Bindings that were accepted but are not in the cache yet: uid -> node.
        self._assumed: dict[str, str] = {}
        self._reported: dict[str, str] = {}
        pods.handlers.append(self._on_pod)
        nodes.handlers.append(lambda old, new: self._wake.set())

    def _on_pod(self, old: JsonObject | None, new: JsonObject | None) -> None:
        pod = new or old
        assert pod is not None
        uid = pod["metadata"]["uid"]
        if new is None or new["spec"].get("nodeName"):
            self._assumed.pop(uid, None)
            self._reported.pop(uid, None)
        self._wake.set()

    async def run(self) -> None:
        """Schedule until cancelled."""
        await self._pods.synced.wait()
        await self._nodes.synced.wait()
        while True:
            self._wake.clear()
            try:
                await self._pass()
            except (ApiException, *NETWORK_ERRORS) as error:
                log.warning("scheduling pass failed: %r", error)
                await asyncio.sleep(0.5)
                self._wake.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS):
                    await self._wake.wait()

    def waiting_pods(self) -> list[JsonObject]:
        """Pods that this scheduler should place now, in order."""
        waiting = [
            pod
            for pod in self._pods.store.values()
            if not pod["spec"].get("nodeName")
            and not pod["metadata"].get("deletionTimestamp")
            and not pod["spec"].get("schedulingGates")
            and pod["spec"].get("schedulerName", SCHEDULER_NAME) == SCHEDULER_NAME
            and pod["metadata"]["uid"] not in self._assumed
            and not is_finished(pod)
        ]

        def rank(pod: JsonObject) -> tuple[int, str, Key]:
            return -int(pod["spec"].get("priority") or 0), pod["metadata"]["creationTimestamp"], key_of(pod)

        return sorted(waiting, key=rank)

    def views(self) -> list[NodeView]:
        """Every node with the pods bound to it, assumed bindings included."""
        views = {node["metadata"]["name"]: NodeView(node) for node in self._nodes.store.values()}
        for pod in self._pods.store.values():
            name = pod["spec"].get("nodeName") or self._assumed.get(pod["metadata"]["uid"])
            if name in views:
                views[name].pods.append(pod)
        return list(views.values())

    async def _pass(self) -> None:
        waiting = self.waiting_pods()
        if not waiting:
            return
        views = self.views()
        for pod in waiting:
            placement = _judge(pod, views)
            if placement.node is None:
                await self._unschedulable(pod, placement)
            elif await self._bind(pod, placement.node):
                self._assume(pod, placement.node, views)

    def _assume(self, pod: JsonObject, node: str, views: Iterable[NodeView]) -> None:
        cached = self._pods.store.get(key_of(pod))
        if cached is not None and not cached["spec"].get("nodeName"):
            self._assumed[pod["metadata"]["uid"]] = node
        next(view for view in views if view.name == node).pods.append(pod)

    async def _bind(self, pod: JsonObject, node: str) -> bool:
        namespace, name = key_of(pod)
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "namespace": namespace, "uid": pod["metadata"]["uid"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        try:
            await self._client.create(PODS, namespace, binding, name, "binding")
        except ApiException as error:
            if is_status(error, 404, 409):
                return False
            raise
        self._recorder.record(pod, "Normal", "Scheduled", f"Successfully assigned {namespace}/{name} to {node}")
        return True

    async def _unschedulable(self, pod: JsonObject, placement: Placement) -> None:
        """Say why in the PodScheduled condition and an event, once per message."""
        uid = pod["metadata"]["uid"]
        if self._reported.get(uid) == placement.message:
            return
        namespace, name = key_of(pod)
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": placement.message,
            "lastProbeTime": None,
            "lastTransitionTime": now_text(),
        }
        body = {"metadata": {"uid": uid}, "status": {"conditions": [condition]}}
        try:
            await self._client.patch(PODS, namespace, name, body, sub="status", content_type=STRATEGIC_PATCH)
        except ApiException as error:
            if not is_status(error, 404, 409):
                raise
            return
        self._reported[uid] = placement.message
        self._recorder.record(pod, "Warning", "FailedScheduling", placement.message)
