"""EndpointSlices: the addresses of the pods that a Service selects."""

from __future__ import annotations

import asyncio
import logging

from trireme_local.events import EventRecorder
from trireme_local.informer import Informer, key_of
from trireme_local.kube import (
    ENDPOINTSLICES,
    NETWORK_ERRORS,
    ApiException,
    JsonObject,
    KubeClient,
    is_status,
)
from trireme_local.quantities import is_finished

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.2
RETRY_SECONDS = 2.0
MANAGED_BY = "endpointslice-controller.k8s.io"


def pod_endpoint(pod: JsonObject, service: JsonObject) -> JsonObject | None:
    """The pod's endpoint, None while it has no address or has finished."""
    status = pod.get("status") or {}
    if not status.get("podIP") or is_finished(pod):
        return None
    terminating = bool(pod["metadata"].get("deletionTimestamp"))
    ready = any(item["type"] == "Ready" and item["status"] == "True" for item in status.get("conditions") or [])
    publish = bool(service["spec"].get("publishNotReadyAddresses"))
    metadata = pod["metadata"]
    endpoint: JsonObject = {
        "addresses": [status["podIP"]],
        "conditions": {
            "ready": publish or (ready and not terminating),
            "serving": ready or publish,
            "terminating": terminating,
        },
        "nodeName": pod["spec"].get("nodeName"),
        "targetRef": {
            "kind": "Pod",
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
    }
    spec = pod["spec"]
    if spec.get("hostname") and spec.get("subdomain") == service["metadata"]["name"]:
        endpoint["hostname"] = spec["hostname"]
    return endpoint


def target_port(pods: list[JsonObject], port: JsonObject) -> int | None:
    """The number behind a service port; a named one is looked up in the pods' containers."""
    target = port.get("targetPort", port["port"])
    if isinstance(target, int):
        return target
    for pod in pods:
        for container in pod["spec"]["containers"]:
            for declared in container.get("ports") or []:
                if declared.get("name") == target:
                    return int(declared["containerPort"])
    return None


def endpoint_slice(service: JsonObject, pods: list[JsonObject]) -> JsonObject:
    """The one EndpointSlice of a service that selects `pods`."""
    metadata = service["metadata"]
    endpoints = [endpoint for pod in pods if (endpoint := pod_endpoint(pod, service)) is not None]
    ports = [
        {"name": port.get("name", ""), "port": number, "protocol": port.get("protocol", "TCP")}
        for port in service["spec"].get("ports") or []
        if (number := target_port(pods, port)) is not None
    ]
    owner = {
        "apiVersion": "v1",
        "kind": "Service",
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "apiVersion": ENDPOINTSLICES.group_version,
        "kind": ENDPOINTSLICES.kind,
        "metadata": {
            "name": f"{metadata['name']}-{metadata['uid'][:5]}",
            "namespace": metadata["namespace"],
            "labels": {
                "kubernetes.io/service-name": metadata["name"],
                "endpointslice.kubernetes.io/managed-by": MANAGED_BY,
            },
            "ownerReferences": [owner],
        },
        "addressType": "IPv4",
        "endpoints": sorted(endpoints, key=lambda item: item["targetRef"]["name"]),
        "ports": ports,
    }


class EndpointSlices:
    """Keeps one slice per service with a selector."""

    def __init__(self, client: KubeClient, pods: Informer, services: Informer, recorder: EventRecorder) -> None:
        self._client = client
        self._recorder = recorder
        self._pods, self._services = pods, services
        self._wake = asyncio.Event()
        self._written: dict[str, JsonObject] = {}
        for informer in (pods, services):
            informer.handlers.append(lambda old, new: self._wake.set())

    async def run(self) -> None:
        """Work until cancelled."""
        await self._pods.synced.wait()
        await self._services.synced.wait()
        while True:
            self._wake.clear()
            failed = False
            for service in list(self._services.store.values()):
                try:
                    await self._visit(service)
                except (ApiException, *NETWORK_ERRORS) as error:
                    log.info("endpoints of %s: %r", key_of(service), error)
                    failed = True
            await asyncio.sleep(RETRY_SECONDS if failed else SETTLE_SECONDS)
            if not failed:
                await self._wake.wait()

    async def _visit(self, service: JsonObject) -> None:
        selector = service["spec"].get("selector")
        if (
            not selector
            or service["spec"].get("type") == "ExternalName"
            or service["metadata"].get("deletionTimestamp")
        ):
            return
        namespace = service["metadata"]["namespace"]
        pods = [
            pod
            for (pod_namespace, _), pod in self._pods.store.items()
            if pod_namespace == namespace and selector.items() <= (pod["metadata"].get("labels") or {}).items()
        ]
        wanted = endpoint_slice(service, pods)
        uid = service["metadata"]["uid"]
        if self._written.get(uid) == wanted:
            return
        try:
            await self._write(namespace, wanted)
        except ApiException as error:
            if not is_status(error, 422):
                raise
            # API servers refuse loopback addresses, which the pods of local nodes have: no retry changes that.
            name = service["metadata"]["name"]
            text = f"Error updating Endpoint Slices for Service {namespace}/{name}: {error.reason}"
            self._recorder.record(service, "Warning", "FailedToUpdateEndpointSlices", text)
        self._written[uid] = wanted

    async def _write(self, namespace: str, wanted: JsonObject) -> None:
        try:
            await self._client.patch(ENDPOINTSLICES, namespace, wanted["metadata"]["name"], wanted)
        except ApiException as error:
            if not is_status(error, 404):
                raise
            await self._client.create(ENDPOINTSLICES, namespace, wanted)
