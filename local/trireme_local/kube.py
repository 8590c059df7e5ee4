"""A thin asynchronous Kubernetes client: the official client's transport and credentials, plain JSON objects.

The local node and controllers handle objects as the API server sent them (fields that a model class
does not know survive a read-modify-write), so only configuration and transport come from
`kubernetes.aio`; its model classes are not used.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio import client as kube_client
from kubernetes.aio import config as kube_config
from kubernetes.aio.client.exceptions import ApiException

from trireme.loopback import is_loopback

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"

JsonObject = dict[str, Any]

# A request that has not answered after this long is tried again by its caller's loop.
REQUEST_TIMEOUT_SECONDS = 10.0
WATCH_TIMEOUT_SECONDS = 290
KUBECONFIG_WAIT_SECONDS = 60.0

NETWORK_ERRORS = (aiohttp.ClientError, TimeoutError, OSError)

__all__ = [
    "JSON_PATCH",
    "MERGE_PATCH",
    "NETWORK_ERRORS",
    "STRATEGIC_PATCH",
    "ApiException",
    "JsonObject",
    "KubeClient",
    "Resource",
    "WatchExpired",
    "is_status",
]


class WatchExpired(Exception):
    """The resource version to watch from is too old (410 Gone): list again."""


def is_status(error: BaseException, *codes: int) -> bool:
    """True when `error` is an API answer with one of the HTTP status `codes`."""
    return isinstance(error, ApiException) and error.status in codes


@dataclass(frozen=True)
class Resource:
    """One API resource: where its objects live and what they are called."""

    group_version: str
    plural: str
    kind: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of the collection, an object in it, or a subresource of that object."""
        parts = ["/api" if "/" not in self.group_version else "/apis", self.group_version]
        if namespace and self.namespaced:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name:
            parts.append(name)
        if subresource:
            parts.append(subresource)
        return "/".join(parts)


PODS = Resource("v1", "pods", "Pod")
NODES = Resource("v1", "nodes", "Node", namespaced=False)
NAMESPACES = Resource("v1", "namespaces", "Namespace", namespaced=False)
SECRETS = Resource("v1", "secrets", "Secret")
CONFIGMAPS = Resource("v1", "configmaps", "ConfigMap")
SERVICES = Resource("v1", "services", "Service")
SERVICEACCOUNTS = Resource("v1", "serviceaccounts", "ServiceAccount")
ENDPOINTS = Resource("v1", "endpoints", "Endpoints")
EVENTS = Resource("v1", "events", "Event")
LEASES = Resource("coordination.k8s.io/v1", "leases", "Lease")
ENDPOINTSLICES = Resource("discovery.k8s.io/v1", "endpointslices", "EndpointSlice")
PRIORITYCLASSES = Resource("scheduling.k8s.io/v1", "priorityclasses", "PriorityClass", namespaced=False)
PODDISRUPTIONBUDGETS = Resource("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget")
DEPLOYMENTS = Resource("apps/v1", "deployments", "Deployment")
REPLICASETS = Resource("apps/v1", "replicasets", "ReplicaSet")
CUSTOMRESOURCEDEFINITIONS = Resource(
    "apiextensions.k8s.io/v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)


def wait_for_kubeconfig(path: Path) -> None:
    """Block until the file is there (an API server that is starting writes it). Raises FileNotFoundError."""
    deadline = time.monotonic() + KUBECONFIG_WAIT_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise FileNotFoundError(f"{path} is not there after {KUBECONFIG_WAIT_SECONDS:g} s")
        time.sleep(0.1)


class KubeClient:
    """Requests to one API server. Raises `ApiException` for an answer that is not 2xx, aiohttp errors below it."""

    def __init__(self, configuration: Any, user_agent: str) -> None:
        configuration.retries = False
        configuration.client_session_kwargs = {"trust_env": not is_loopback(configuration.host)}
        self._configuration = configuration
        self._user_agent = user_agent
        self._api = self._connect()

    @classmethod
    async def from_kubeconfig(cls, path: Path, user_agent: str) -> KubeClient:
        """A client with the address and credentials of the kubeconfig at `path`."""
        configuration = kube_client.Configuration()
        await kube_config.load_kube_config(
            config_file=str(path), client_configuration=configuration, persist_config=False
        )
        return cls(configuration, user_agent)

    @property
    def host(self) -> str:
        """The API server's URL."""
        return str(self._configuration.host)

    @property
    def ca_path(self) -> str | None:
        """File with the certificate authority that the kubeconfig trusts."""
        path = self._configuration.ssl_ca_cert
        return str(path) if path else None

    def _connect(self) -> Any:
        api = kube_client.ApiClient(self._configuration)
        api.user_agent = self._user_agent
        return api

    async def reconnect(self) -> None:
        """Drop every connection: after a network partition old ones may stay silent for minutes."""
        old, self._api = self._api, self._connect()
        await old.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._api.close()

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: object,
        content_type: str,
        limits: aiohttp.ClientTimeout,
        accept: str = JSON,
    ) -> aiohttp.ClientResponse:
        url, headers = path, {"Accept": accept, "Content-Type": content_type}
        serialized = await self._api.param_serialize(
            method,
            url,
            query_params=list((query or {}).items()),
            header_params=headers,
            auth_settings=["BearerToken"],
        )
        answer = await self._api.rest_client.request(
            serialized[0], serialized[1], headers=serialized[2], body=body, _request_timeout=limits
        )
        response: aiohttp.ClientResponse = answer.response
        if not 200 <= response.status <= 299:
            text = await response.text()
            response.release()
            error = ApiException(status=response.status, reason=_reason(text) or response.reason)
            error.body = text
            raise error
        return response

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: object = None,
        content_type: str = JSON,
        timeout_seconds: float = REQUEST_TIMEOUT_SECONDS,
        accept: str = JSON,
    ) -> JsonObject:
        """One request, one JSON answer."""
        timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        response = await self._send(method, path, query, body, content_type, timeout, accept)
        try:
            answer: JsonObject = json.loads(await response.read())
        finally:
            response.release()
        return answer

    async def get(self, resource: Resource, namespace: str | None, name: str) -> JsonObject:
        """The object."""
        return await self.request("GET", resource.path(namespace, name))

    async def list(
        self, resource: Resource, namespace: str | None = None, *, accept: str = JSON, **query: str
    ) -> JsonObject:
        """The whole list object (its `items` and `metadata.resourceVersion`)."""
        return await self.request(
            "GET", resource.path(namespace), query=query, accept=accept, timeout_seconds=3 * REQUEST_TIMEOUT_SECONDS
        )

    async def create(
        self,
        resource: Resource,
        namespace: str | None,
        body: JsonObject,
        name: str | None = None,
        sub: str | None = None,
    ) -> JsonObject:
        """Create the object (or post to subresource `sub` of object `name`); returns the answer."""
        return await self.request("POST", resource.path(namespace, name, sub), body=body)

    async def replace(
        self, resource: Resource, namespace: str | None, name: str, body: JsonObject, sub: str | None = None
    ) -> JsonObject:
        """Put the whole object; its resourceVersion, when given, must be the current one."""
        return await self.request("PUT", resource.path(namespace, name, sub), body=body)

    async def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        body: object,
        *,
        sub: str | None = None,
        content_type: str = MERGE_PATCH,
    ) -> JsonObject:
        """Patch the object or its subresource."""
        return await self.request("PATCH", resource.path(namespace, name, sub), body=body, content_type=content_type)

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        grace_period_seconds: int | None = None,
        propagation_policy: str | None = None,
    ) -> JsonObject:
        """Delete the object, with preconditions where given."""
        options: JsonObject = {"apiVersion": "v1", "kind": "DeleteOptions"}
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        if any(preconditions.values()):
            options["preconditions"] = {key: value for key, value in preconditions.items() if value}
        if grace_period_seconds is not None:
            options["gracePeriodSeconds"] = grace_period_seconds
        if propagation_policy:
            options["propagationPolicy"] = propagation_policy
        return await self.request("DELETE", resource.path(namespace, name), body=options)

    async def watch(
        self, resource: Resource, namespace: str | None, resource_version: str, *, accept: str = JSON, **query: str
    ) -> AsyncIterator[JsonObject]:
        """Watch events after `resource_version`, until the server ends the stream. Raises `WatchExpired` on 410."""
        parameters = {
            **query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(WATCH_TIMEOUT_SECONDS),
        }
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=REQUEST_TIMEOUT_SECONDS, sock_read=WATCH_TIMEOUT_SECONDS + 30
        )
        try:
            response = await self._send("GET", resource.path(namespace), parameters, None, JSON, timeout, accept)
        except ApiException as error:
            if is_status(error, 410):
                raise WatchExpired(str(error)) from error
            raise
        try:
            while line := await response.content.readline():
                event: JsonObject = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    if status.get("code") == 410:
                        raise WatchExpired(str(status.get("message")))
                    raise ApiException(status=status.get("code"), reason=status.get("message"))
                yield event
        finally:
            response.close()


def _reason(text: str) -> str | None:
    """The message of a Kubernetes Status object, else None."""
    try:
        message = json.loads(text).get("message")
    except (ValueError, AttributeError):
        return None
    return str(message) if message else None
