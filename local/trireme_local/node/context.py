"""What the parts of one node share."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trireme_local.events import EventRecorder
from trireme_local.informer import Informer
from trireme_local.kube import CONFIGMAPS, SECRETS, ApiException, JsonObject, KubeClient
from trireme_local.node.environment import Lookup
from trireme_local.node.images import ImageTable
from trireme_local.node.namespaces import MountNamespaces


def wants_read_only_root(pod: JsonObject) -> bool:
    """Whether one of the pod's containers asks for `readOnlyRootFilesystem`."""
    containers = [*(pod["spec"].get("initContainers") or []), *(pod["spec"].get("containers") or [])]
    return any((container.get("securityContext") or {}).get("readOnlyRootFilesystem") for container in containers)


class AddressesExhausted(RuntimeError):
    """Every pod address of the node is in use."""


class PodAddresses:
    """Hands out the node's loopback addresses, one to a pod, the longest unused first."""

    def __init__(self, network: ipaddress.IPv4Network) -> None:
        hosts = list(network.hosts())
        self.node_address = str(hosts[0])
        self._free = [str(address) for address in hosts[1:]]
        self._size = len(self._free)

    def take(self) -> str:
        """An address nobody holds. Raises `AddressesExhausted`."""
        if not self._free:
            raise AddressesExhausted(f"all {self._size} pod addresses of the node are in use")
        return self._free.pop(0)

    def give_back(self, address: str) -> None:
        """Return an address."""
        if address not in self._free:
            self._free.append(address)


@dataclass(frozen=True)
class Timings:
    """Intervals of the node's loops."""

    lease_renew_seconds: float = 2.0
    lease_duration_seconds: int = 8
    status_report_seconds: float = 30.0
    memory_poll_seconds: float = 1.0
    volume_refresh_seconds: float = 10.0
    config_retry_seconds: float = 2.0
    backoff_initial_seconds: float = 10.0
    backoff_max_seconds: float = 300.0
    backoff_reset_seconds: float = 600.0


@dataclass
class NodeContext:
    """The node's identity, its connections and its settings."""

    name: str
    client: KubeClient
    recorder: EventRecorder
    images: ImageTable
    addresses: PodAddresses
    directory: Path
    scratch: Path
    marker: str
    capacity: Mapping[str, str]
    services: Informer
    memory: Path | None = None
    """Where volumes of medium `Memory` lie that are mounted; None where there is no file system in memory."""
    namespaces: MountNamespaces | None = None
    """What gives containers file systems of their own, None where every pod's paths are rewritten instead."""
    isolate_all: bool = False
    """Whether every pod gets them, and not only one that asks for a read-only root."""
    bytecode: Path | None = None
    """Directory where Python programs in such file systems keep their compiled modules."""
    timings: Timings = field(default_factory=Timings)

    @property
    def host_ip(self) -> str:
        """The node's InternalIP."""
        return self.addresses.node_address

    @property
    def temporary(self) -> list[Path]:
        """The directories that hold nothing once no pod runs."""
        return [self.scratch, *([self.memory] if self.memory else [])]

    def namespaces_for(self, pod: JsonObject) -> MountNamespaces | None:
        """What gives this pod's containers file systems of their own, None where its paths are rewritten instead."""
        return self.namespaces if self.isolate_all or wants_read_only_root(pod) else None

    def lookup(self, namespace: str) -> Lookup:
        """Finds ConfigMaps and Secrets of a namespace through the API server."""

        async def find(kind: str, name: str) -> JsonObject | None:
            resource = {"ConfigMap": CONFIGMAPS, "Secret": SECRETS}[kind]
            try:
                return await self.client.get(resource, namespace, name)
            except ApiException as error:
                if error.status == 404:
                    return None
                raise

        return find


async def pause(stop: asyncio.Event, seconds: float) -> bool:
    """Sleep until `stop` is set or the time is over; True when stopped."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
    return stop.is_set()
