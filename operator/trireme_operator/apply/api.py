"""The one Kubernetes client: the official asynchronous one, with plain JSON in and out."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_kube_config
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.config.incluster_config import InClusterConfigLoader

from trireme.loopback import is_loopback
from trireme_operator.metrics import INSTRUMENTS

FIELD_MANAGER = "trireme-operator"
APPLY_PATCH = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes mounts the token of a pod's account and the certificate of the API server's authority."""

JsonObject = dict[str, Any]


class ApiError(Exception):
    """An answer other than success; 0 is the status where there was no answer."""

    def __init__(self, status: int, reason: str, message: str, fields: tuple[str, ...] = ()) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.fields = fields  # of the object, that the server's own validation found wrong

    @property
    def already_exists(self) -> bool:
        """Whether a creation found its name in use."""
        return self.status == 409 and self.reason == "AlreadyExists"


def path_of(group: str, version: str, plural: str, namespace: str | None = None, *more: str) -> str:
    """The path of a resource; `more` is a name and perhaps a subresource."""
    root = f"/api/{version}" if not group else f"/apis/{group}/{version}"
    parts = [root]
    if namespace is not None:
        parts += ["namespaces", quote(namespace, safe="")]
    parts += [plural, *(quote(part, safe="") for part in more)]
    return "/".join(parts)


async def load_configuration(kubeconfig: str | None, account: Path = SERVICE_ACCOUNT) -> Configuration:
    """Client configuration from a kubeconfig, or from the pod's service account. Raises ConfigException."""
    configuration = Configuration()
    logging.getLogger(load_kube_config.__module__).setLevel(logging.ERROR)  # in a pod it warns that there is no file
    try:
        await load_kube_config(config_file=kubeconfig, client_configuration=configuration, persist_config=False)
    except (ConfigException, FileNotFoundError):
        if kubeconfig is not None:
            raise
        configuration = pod_configuration(account)
    configuration.client_session_kwargs = {"trust_env": not is_loopback(configuration.host)}
    return configuration


def pod_configuration(account: Path) -> Configuration:
    """Client configuration of a pod, by its account's mounted directory. Raises ConfigException outside a pod."""
    configuration = Configuration()
    InClusterConfigLoader(str(account / "token"), str(account / "ca.crt")).load_and_set(configuration)
    return configuration


class Api:
    """Requests with plain JSON bodies. Raises ApiError for every answer that is not a success."""

    def __init__(self, configuration: Configuration, timeout_seconds: float = 10.0) -> None:
        self._client = ApiClient(configuration)
        self._timeout = timeout_seconds
        self.on_forbidden: Callable[[], None] = lambda: None
        """Called after each answer 403."""

    async def close(self) -> None:
        await self._client.close()

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: tuple[tuple[str, str], ...] = (),
        content_type: str = "application/json",
    ) -> JsonObject:
        """One request; returns the decoded answer."""
        began = time.monotonic()
        code = 0
        try:
            prepared = await self._client.param_serialize(
                method,
                path,
                query_params=list(query),
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
            )
            response = await self._client.call_api(*prepared, _request_timeout=self._timeout)
            data = await response.read()
            answer = json.loads(data) if data and 200 <= response.status <= 299 else {}
            if not isinstance(answer, dict):
                raise ValueError(f"an answer of type {type(answer).__name__}")
            code = response.status
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            # A connection that breaks off, or half an answer: what a server says that is being restarted.
            raise ApiError(0, type(error).__name__, str(error)) from error
        finally:
            INSTRUMENTS.api_requests.labels(method, _resource(path), str(code)).inc()
            INSTRUMENTS.api_seconds.labels(method).observe(time.monotonic() - began)
        if code == 403:
            self.on_forbidden()
        if not 200 <= code <= 299:
            raise _error(code, data)
        return answer

    async def get(self, path: str, query: tuple[tuple[str, str], ...] = ()) -> JsonObject:
        return await self.request("GET", path, query=query)

    async def list_all(self, path: str, query: tuple[tuple[str, str], ...] = ()) -> list[JsonObject]:
        """All items of a list, page by page."""
        items: list[JsonObject] = []
        token = ""
        while True:
            page = (("limit", "500"), *((("continue", token),) if token else ()))
            answer = await self.get(path, query=(*query, *page))
            items += answer.get("items") or []
            token = (answer.get("metadata") or {}).get("continue") or ""
            if not token:
                return items

    async def create(self, path: str, body: JsonObject, *, dry_run: bool = False) -> JsonObject:
        """POST; with `dry_run` the server checks everything and stores nothing."""
        query = (("fieldManager", FIELD_MANAGER), *((("dryRun", "All"),) if dry_run else ()))
        return await self.request("POST", path, body, query=query)

    async def replace(self, path: str, body: JsonObject) -> JsonObject:
        """PUT; metadata.resourceVersion in `body` is the precondition."""
        return await self.request("PUT", path, body, query=(("fieldManager", FIELD_MANAGER),))

    async def patch(self, path: str, body: JsonObject, resource_version: str) -> JsonObject:
        """Merge patch of an object in exactly this version."""
        body = {**body, "metadata": {**(body.get("metadata") or {}), "resourceVersion": resource_version}}
        query = (("fieldManager", FIELD_MANAGER),)
        return await self.request("PATCH", path, body, query=query, content_type=MERGE_PATCH)

    async def apply(self, path: str, body: JsonObject) -> JsonObject:
        """Server-side apply as this operator, taking over fields that others hold: only for Events, which are ours."""
        query = (("fieldManager", FIELD_MANAGER), ("force", "true"))
        return await self.request("PATCH", path, body, query=query, content_type=APPLY_PATCH)

    async def delete(
        self, path: str, *, uid: str, resource_version: str | None = None, grace_seconds: int | None = None
    ) -> JsonObject:
        """Delete exactly this object, and only in this version where one is given."""
        preconditions = {"uid": uid} | ({"resourceVersion": resource_version} if resource_version else {})
        options: JsonObject = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": preconditions,
            "propagationPolicy": "Background",
        }
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        return await self.request("DELETE", path, options)


def _resource(path: str) -> str:
    """The plural in a path, for metrics."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    if len(parts) > 2 and parts[0] == "namespaces":
        parts = parts[2:]
    return parts[0] if parts else "discovery"


def _error(code: int, data: bytes) -> ApiError:
    try:
        status = json.loads(data)
        causes = (status.get("details") or {}).get("causes") or ()
        fields = tuple(str(cause["field"]) for cause in causes if cause.get("field"))
        return ApiError(code, str(status.get("reason", "")), str(status.get("message", "")), fields)
    except (ValueError, AttributeError, TypeError):
        return ApiError(code, "", data[:500].decode(errors="replace"))
