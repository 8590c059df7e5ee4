"""A Kubernetes cluster as the command line sees it: raw requests with the official client's authentication."""

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException

from trireme_local.api import load_configuration

LOCAL_KUBECONFIG = Path(".trireme/local/kubeconfig")
FIELD_MANAGER = "trireme-cli"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


class ClusterError(Exception):
    """The API server refused; the message is its own."""

    def __init__(self, status: int, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class ResourceType:
    """One resource type from discovery."""

    group: str
    version: str
    plural: str
    singular: str
    kind: str
    namespaced: bool
    short_names: tuple[str, ...]

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """URL path of the collection, or of one object."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        if self.namespaced and namespace is not None:
            root += f"/namespaces/{namespace}"
        return f"{root}/{self.plural}" + (f"/{name}" if name else "")

    @property
    def names(self) -> set[str]:
        qualified = f"{self.plural}.{self.group}" if self.group else self.plural
        return {self.plural, self.singular, self.kind.lower(), qualified, *self.short_names}


def find_kubeconfig(explicit: Path | None) -> Path | None:
    """The kubeconfig to use: the option, then KUBECONFIG, then the local cluster's; None means ~/.kube/config."""
    if explicit is not None:
        return explicit
    if os.environ.get("KUBECONFIG"):
        return Path(os.environ["KUBECONFIG"])
    return LOCAL_KUBECONFIG if LOCAL_KUBECONFIG.exists() else None


def _load(path: Path | None) -> client.Configuration:
    try:
        return load_configuration(path)
    except (ConfigException, yaml.YAMLError, TypeError) as error:  # TypeError: the file is YAML, but no mapping
        detail = f"{path or '~/.kube/config'}: {' '.join(str(error).split())}"
        raise ClusterError(0, f"no cluster: run `trireme local up` or set KUBECONFIG ({detail})") from error


class Cluster:
    """Requests to one API server. Raises ClusterError for every refusal."""

    def __init__(self, kubeconfig: Path | None = None) -> None:
        """Raises ClusterError when there is no usable kubeconfig."""
        path = find_kubeconfig(kubeconfig)
        configuration = _load(path)
        self.kubeconfig = path
        self._api = client.ApiClient(configuration)
        self._configuration = configuration
        self._types: list[ResourceType] = []

    def connection(self) -> dict[str, str | bool]:
        """The `cluster` entry of a kubeconfig for this API server, without any user's access."""
        entry: dict[str, str | bool] = {"server": self._configuration.host}
        if self._configuration.ssl_ca_cert:
            data = Path(self._configuration.ssl_ca_cert).read_bytes()
            entry["certificate-authority-data"] = base64.b64encode(data).decode()
        if not self._configuration.verify_ssl:
            entry["insecure-skip-tls-verify"] = True
        return entry

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: dict[str, str] | None = None,
        accept: str = "application/json",
        content_type: str = "application/json",
        timeout_seconds: float = 30,
    ) -> Any:
        """One request; returns the decoded JSON answer, or text when the answer is not JSON."""
        response = self.open(
            method, path, body, query=query, accept=accept, content_type=content_type, timeout_seconds=timeout_seconds
        )
        text = response.read().decode()
        return json.loads(text) if text.lstrip().startswith("{") else text

    def open(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: dict[str, str] | None = None,
        accept: str = "application/json",
        content_type: str = "application/json",
        timeout_seconds: float | None = 30,
    ) -> Any:
        """Like `request`, but returns the unread response, to be streamed."""
        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = content_type
        url = path + ("?" + urlencode(query) if query else "")
        args = self._api.param_serialize(
            method=method, resource_path=url, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        try:
            response = self._api.call_api(*args, _request_timeout=timeout_seconds)
        except ApiException as error:
            raise _as_cluster_error(error.status or 0, error.body, error.reason) from error
        if not 200 <= response.status <= 299:
            raise _as_cluster_error(response.status, response.response.read(), response.reason)
        return response.response

    def types(self) -> list[ResourceType]:
        """All resource types the server offers, in its preferred versions."""
        if not self._types:
            versions = [("", "v1", "/api/v1")]
            for group in self.request("GET", "/apis")["groups"]:
                version = group["preferredVersion"]["version"]
                versions.append((group["name"], version, f"/apis/{group['name']}/{version}"))
            for group_name, version, path in versions:
                for entry in self.request("GET", path)["resources"]:
                    if "/" not in entry["name"]:
                        self._types.append(_resource_type(group_name, version, entry))
        return self._types

    def find_type(self, name: str) -> ResourceType:
        """The type with this plural, singular, kind, short or group-qualified name. Raises ClusterError."""
        for _ in range(2):
            for candidate in self.types():
                if name.lower() in candidate.names:
                    return candidate
            self._types = []  # a CRD applied a moment ago appears in the next discovery
        raise ClusterError(404, f"the server doesn't have a resource type {name!r}", "NotFound")

    def type_of(self, manifest: dict[str, Any]) -> ResourceType:
        """The type of a manifest. Raises ClusterError when the server lacks it."""
        group, _, version = manifest.get("apiVersion", "").rpartition("/")
        for _ in range(2):
            for candidate in self.types():
                if (candidate.group, candidate.version, candidate.kind) == (group, version, manifest.get("kind")):
                    return candidate
            self._types = []  # a CRD applied a moment ago appears in the next discovery
        raise ClusterError(
            404, f'no matches for kind "{manifest.get("kind")}" in version "{manifest.get("apiVersion")}"', "NotFound"
        )

    def apply(self, manifest: dict[str, Any], namespace: str, *, force: bool = True) -> dict[str, Any]:
        """Server-side apply one manifest; returns the object."""
        kind = self.type_of(manifest)
        metadata = manifest["metadata"]
        path = kind.path(metadata.get("namespace", namespace) if kind.namespaced else None, metadata["name"])
        query = {"fieldManager": FIELD_MANAGER, "force": "true" if force else "false", "fieldValidation": "Strict"}
        applied: dict[str, Any] = self.request(
            "PATCH", path, manifest, query=query, content_type="application/apply-patch+yaml"
        )
        return applied


def _resource_type(group: str, version: str, entry: dict[str, Any]) -> ResourceType:
    return ResourceType(
        group=group,
        version=version,
        plural=entry["name"],
        singular=entry.get("singularName") or entry["kind"].lower(),
        kind=entry["kind"],
        namespaced=entry["namespaced"],
        short_names=tuple(entry.get("shortNames") or ()),
    )


def _as_cluster_error(status: int, body: bytes | str | None, fallback: str | None) -> ClusterError:
    try:
        answer = json.loads(body or "")
        return ClusterError(status, answer.get("message", fallback or ""), answer.get("reason", ""))
    except ValueError:
        text = body.decode(errors="replace") if isinstance(body, bytes) else (body or "")
        return ClusterError(status, text.strip() or fallback or f"HTTP {status}")
