"""Pod garbage collection: pods whose node will never report them again."""

from __future__ import annotations

import asyncio
import logging
import time

from trireme_local.controllers.nodelifecycle import ready_status
from trireme_local.events import now_text
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

log = logging.getLogger(__name__)

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
TICK_SECONDS = 2.0
# A node missing from the cache is asked for once more after this long before its pods are removed.
QUARANTINE_SECONDS = 4.0


class PodGarbageCollector:
    """Force-deletes pods of deleted nodes, of nodes declared out of service, and unscheduled ones being deleted."""

    def __init__(self, client: KubeClient, pods: Informer, nodes: Informer) -> None:
        self._client = client
        self._pods, self._nodes = pods, nodes
        self._missing: dict[str, float] = {}

    async def run(self) -> None:
        """Look every two seconds until cancelled."""
        await self._pods.synced.wait()
        await self._nodes.synced.wait()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                await self._pass()
            except (ApiException, *NETWORK_ERRORS) as error:
                log.warning("pod garbage collection: %r", error)

    async def _pass(self) -> None:
        gone = await self._gone_nodes()
        for pod in list(self._pods.store.values()):
            name = pod["spec"].get("nodeName")
            terminating = pod["metadata"].get("deletionTimestamp")
            if name in gone:
                await self._fail(pod, "PodGC: node no longer exists")
                await self._force_delete(pod)
            elif terminating and not name:
                await self._force_delete(pod)
            elif terminating and self._out_of_service(name):
                await self._fail(pod, "PodGC: node is out of service")
                await self._force_delete(pod)

    def _out_of_service(self, name: str) -> bool:
        node = self._nodes.store.get(("", name))
        if node is None or ready_status(node) == "True":
            return False
        return any(taint["key"] == OUT_OF_SERVICE for taint in (node.get("spec") or {}).get("taints") or [])

    async def _gone_nodes(self) -> set[str]:
        """Names of nodes that pods are bound to and that the API server has confirmed not to exist."""
        used = {pod["spec"]["nodeName"] for pod in self._pods.store.values() if pod["spec"].get("nodeName")}
        absent = {name for name in used if ("", name) not in self._nodes.store}
        now = time.monotonic()
        self._missing = {name: self._missing.get(name, now) for name in absent}
        gone = set()
        for name, since in self._missing.items():
            if now - since < QUARANTINE_SECONDS:
                continue
            try:
                await self._client.get(NODES, None, name)
            except ApiException as error:
                if not is_status(error, 404):
                    raise
                gone.add(name)
        return gone

    async def _fail(self, pod: JsonObject, message: str) -> None:
        if is_finished(pod):
            return
        namespace, name = key_of(pod)
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByPodGC",
            "message": message,
            "lastTransitionTime": now_text(),
        }
        body = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": {"phase": "Failed", "conditions": [condition]}}
        try:
            await self._client.patch(PODS, namespace, name, body, sub="status", content_type=STRATEGIC_PATCH)
        except ApiException as error:
            if not is_status(error, 404, 409):
                raise

    async def _force_delete(self, pod: JsonObject) -> None:
        namespace, name = key_of(pod)
        try:
            await self._client.delete(PODS, namespace, name, uid=pod["metadata"]["uid"], grace_period_seconds=0)
        except ApiException as error:
            if not is_status(error, 404, 409):
                raise
