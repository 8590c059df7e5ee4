"""Which addresses Services have, and which pods answer there now."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from trireme_local.kube import JsonObject
from trireme_local.quantities import is_finished

Address = tuple[str, int]
"""(IP, port)."""


@dataclass(frozen=True)
class Route:
    """One port of one Service: the pods that answer, and for how long a client stays with one (0: not at all)."""

    service: tuple[str, str]
    endpoints: tuple[Address, ...]
    affinity_seconds: int = 0


def serves(pod: JsonObject, service: JsonObject) -> bool:
    """Whether new connections go to the pod: it is Ready and not on its way out, or the Service takes all."""
    status = pod.get("status") or {}
    if not status.get("podIP") or is_finished(pod):
        return False
    if service["spec"].get("publishNotReadyAddresses"):
        return True
    if pod["metadata"].get("deletionTimestamp"):
        return False
    return any(item["type"] == "Ready" and item["status"] == "True" for item in status.get("conditions") or [])


def pod_port(pod: JsonObject, port: JsonObject) -> int | None:
    """The number behind a service port in this pod; None when the pod has no port of that name."""
    target = port.get("targetPort", port["port"])
    if isinstance(target, int):
        return target
    spec = pod["spec"]
    sidecars = [item for item in spec.get("initContainers") or [] if item.get("restartPolicy") == "Always"]
    for container in [*spec["containers"], *sidecars]:
        for declared in container.get("ports") or []:
            same = declared.get("protocol", "TCP") == port.get("protocol", "TCP")
            if same and declared.get("name") == target:
                return int(declared["containerPort"])
    return None


def cluster_ip(service: JsonObject) -> str | None:
    """The Service's own address, None for a headless or external one."""
    spec = service["spec"]
    address = spec.get("clusterIP")
    return str(address) if address and address != "None" and spec.get("type") != "ExternalName" else None


def unreachable(service: JsonObject) -> str:
    """Why a Service with a cluster IP is not reachable here (in part), "" where it is."""
    address = cluster_ip(service)
    if address is None or not service["spec"].get("selector"):
        return ""
    if not ipaddress.ip_address(address).is_loopback:
        return f"{address} is no loopback address: nothing on this computer leads there"
    ports = [port for port in service["spec"].get("ports") or [] if port.get("protocol", "TCP") != "TCP"]
    if ports:
        listed = ", ".join(f"{port['port']}/{port['protocol']}" for port in ports)
        return f"{listed}: only TCP is forwarded here"
    return ""


def _affinity_seconds(spec: JsonObject) -> int:
    if spec.get("sessionAffinity") != "ClientIP":
        return 0
    return int(((spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}).get("timeoutSeconds", 10800))


def routes(services: Iterable[JsonObject], pods: Iterable[JsonObject]) -> dict[Address, Route]:
    """Listening address -> route, for every TCP port of every Service that selects pods.

    A Service that is on its way out keeps its address until it is gone, as with kube-proxy.
    """
    by_namespace: dict[str, list[JsonObject]] = defaultdict(list)
    for pod in pods:
        by_namespace[pod["metadata"]["namespace"]].append(pod)
    found: dict[Address, Route] = {}
    for service in services:
        spec, metadata = service["spec"], service["metadata"]
        address, selector = cluster_ip(service), spec.get("selector")
        if address is None or not selector or not ipaddress.ip_address(address).is_loopback:
            continue
        chosen = [
            pod
            for pod in by_namespace[metadata["namespace"]]
            if selector.items() <= (pod["metadata"].get("labels") or {}).items() and serves(pod, service)
        ]
        for port in spec.get("ports") or []:
            if port.get("protocol", "TCP") != "TCP":
                continue
            endpoints = {
                (pod["status"]["podIP"], number) for pod in chosen if (number := pod_port(pod, port)) is not None
            }
            key = (address, int(port["port"]))
            found[key] = Route(
                (metadata["namespace"], metadata["name"]), tuple(sorted(endpoints)), _affinity_seconds(spec)
            )
    return found
