"""The node's own API objects: Node, kept Ready, and its Lease."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import psutil

from trireme_local.events import now_micro_text, now_text
from trireme_local.kube import (
    LEASES,
    NETWORK_ERRORS,
    NODES,
    STRATEGIC_PATCH,
    ApiException,
    JsonObject,
    KubeClient,
    is_status,
)
from trireme_local.node.context import Timings

log = logging.getLogger(__name__)

LEASE_NAMESPACE = "kube-node-lease"
VERSION = "v1.36.0-trireme-local"
DEFAULT_PODS = "110"
# A heartbeat that fails this long means that open connections may be dead without saying so.
RECONNECT_AFTER_SECONDS = 5.0


def default_capacity() -> dict[str, str]:
    """What this machine has: every local node announces all of it."""
    return {
        "cpu": str(os.cpu_count() or 1),
        "memory": f"{psutil.virtual_memory().total // 1024}Ki",
        "ephemeral-storage": f"{psutil.disk_usage('/').total // 1024}Ki",
        "pods": DEFAULT_PODS,
    }


def node_labels(name: str, extra: Mapping[str, str]) -> dict[str, str]:
    """The well-known labels and the configured ones."""
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": architecture,
        **extra,
    }


class Registration:
    """Creates the Node, then renews Lease and conditions until cancelled."""

    def __init__(
        self,
        client: KubeClient,
        name: str,
        *,
        host_ip: str,
        kubelet_port: int,
        labels: Mapping[str, str],
        taints: list[JsonObject],
        capacity: Mapping[str, str],
        timings: Timings,
        runtime: str,
    ) -> None:
        self._client = client
        self._name = name
        self._host_ip = host_ip
        self._kubelet_port = kubelet_port
        self._labels = node_labels(name, labels)
        self._taints = taints
        self._capacity = dict(capacity)
        self._timings = timings
        self._runtime = runtime
        self._boot_id = str(uuid.uuid4())
        self._transitions: dict[str, tuple[str, str]] = {}
        # A renewal that takes longer comes too late to be of use.
        self._patience_seconds = max(
            timings.lease_renew_seconds, timings.lease_duration_seconds - timings.lease_renew_seconds
        )
        self.node_object: JsonObject = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}

    async def register(self) -> None:
        """Create the Node object or take over the one that is there. Tries until it works."""
        while True:
            try:
                await self._register()
                await self._renew_lease()
                return
            except (ApiException, *NETWORK_ERRORS) as error:
                log.warning("node %s: not registered yet: %r", self._name, error)
                await asyncio.sleep(1.0)

    async def _register(self) -> None:
        spec = {"taints": self._taints} if self._taints else {}
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self._name, "labels": self._labels},
            "spec": spec,
        }
        try:
            self.node_object = await self._client.create(NODES, None, body)
        except ApiException as error:
            if not is_status(error, 409):
                raise
            metadata = {"metadata": {"labels": self._labels}}
            self.node_object = await self._client.patch(NODES, None, self._name, metadata)
        for condition in (self.node_object.get("status") or {}).get("conditions") or []:
            self._transitions[condition["type"]] = (condition["status"], condition.get("lastTransitionTime", ""))
        await self._report_status()

    async def _report_status(self) -> None:
        status = {"status": self._status()}
        self.node_object = await self._client.patch(
            NODES, None, self._name, status, sub="status", content_type=STRATEGIC_PATCH
        )

    def _status(self) -> JsonObject:
        return {
            "capacity": self._capacity,
            "allocatable": self._capacity,
            # No Hostname: API servers prefer it by default when they fetch logs, and no DNS knows it.
            "addresses": [{"type": "InternalIP", "address": self._host_ip}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._kubelet_port}},
            "nodeInfo": self._node_info(),
            "conditions": [
                self._condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                self._condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                self._condition("PIDPressure", "False", "KubeletHasSufficientPID"),
                self._condition("Ready", "True", "KubeletReady"),
            ],
        }

    def _condition(self, kind: str, status: str, reason: str) -> JsonObject:
        time_text = now_text()
        before, changed_at = self._transitions.get(kind, ("", ""))
        if before != status or not changed_at:
            changed_at = time_text
        self._transitions[kind] = (status, changed_at)
        return {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": f"{self._name}: {reason}",
            "lastHeartbeatTime": time_text,
            "lastTransitionTime": changed_at,
        }

    def _node_info(self) -> JsonObject:
        machine_id = Path("/etc/machine-id")
        return {
            "architecture": self._labels["kubernetes.io/arch"],
            "bootID": self._boot_id,
            "containerRuntimeVersion": self._runtime,
            "kernelVersion": platform.release(),
            "kubeProxyVersion": "",
            "kubeletVersion": VERSION,
            "machineID": machine_id.read_text().strip() if machine_id.exists() else "",
            "operatingSystem": "linux",
            "osImage": "local processes",
            "systemUUID": str(uuid.uuid5(uuid.NAMESPACE_DNS, self._name)),
        }

    async def _renew_lease(self) -> None:
        spec = {
            "holderIdentity": self._name,
            "leaseDurationSeconds": self._timings.lease_duration_seconds,
            "renewTime": now_micro_text(),
        }
        try:
            await self._client.patch(LEASES, LEASE_NAMESPACE, self._name, {"spec": spec})
        except ApiException as error:
            if not is_status(error, 404):
                raise
            metadata = self.node_object["metadata"]
            owner = {"apiVersion": "v1", "kind": "Node", "name": self._name, "uid": metadata["uid"]}
            body = {
                "apiVersion": LEASES.group_version,
                "kind": LEASES.kind,
                "metadata": {"name": self._name, "namespace": LEASE_NAMESPACE, "ownerReferences": [owner]},
                "spec": spec,
            }
            await self._client.create(LEASES, LEASE_NAMESPACE, body)

    async def run(self, on_reconnect: Callable[[], Awaitable[None]]) -> None:
        """Heartbeats for ever; `on_reconnect` runs when the API server answers again after a silence."""
        reported = time.monotonic()
        answered = time.monotonic()
        while True:
            await asyncio.sleep(self._timings.lease_renew_seconds)
            try:
                async with asyncio.timeout(self._patience_seconds):
                    await self._renew_lease()
                silent_seconds = time.monotonic() - answered
                answered = time.monotonic()
                if silent_seconds > RECONNECT_AFTER_SECONDS + self._timings.lease_renew_seconds:
                    log.info("the API server answers again after %.0f s", silent_seconds)
                    await self._register()
                    await on_reconnect()
                elif time.monotonic() - reported >= self._timings.status_report_seconds:
                    await self._report_status()
                    reported = time.monotonic()
            except ApiException as error:
                log.warning("node %s: heartbeat refused: %s", self._name, error)
                if is_status(error, 404):
                    await self.register()
            except NETWORK_ERRORS as error:
                log.warning("node %s: heartbeat failed: %r", self._name, error)
