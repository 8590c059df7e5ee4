"""A container's environment: values, references, $(VAR) expansion, and the addresses of Services."""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from math import ceil

from trireme_local.kube import JsonObject
from trireme_local.quantities import parse_quantity

_REFERENCE = re.compile(r"\$(?:\$|\(([^)]+)\))")
_SUBSCRIPT = re.compile(r"^metadata\.(labels|annotations)\['([^']+)'\]$")

# (kind, name) -> the object, or None when it does not exist.
Lookup = Callable[[str, str], Awaitable[JsonObject | None]]


class ConfigError(Exception):
    """The container's configuration refers to something that is not there (CreateContainerConfigError)."""


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace $(NAME) by its value; $$ is a dollar; an unknown name stays as it is written.

    Source: k8s.io/kubernetes/third_party/forked/golang/expansion.
    """

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return "$"
        return values.get(name, match.group(0))

    return _REFERENCE.sub(replace, text)


@dataclass(frozen=True)
class PodFacts:
    """What the downward API can tell about a pod."""

    pod: JsonObject
    pod_ip: str
    host_ip: str
    node_allocatable: Mapping[str, str]

    def field(self, path: str) -> str:
        """Value of a fieldRef. Raises `ConfigError` for a field that has none."""
        metadata, spec = self.pod["metadata"], self.pod["spec"]
        if match := _SUBSCRIPT.match(path):
            return str((metadata.get(match.group(1)) or {}).get(match.group(2), ""))
        simple: dict[str, str] = {
            "metadata.name": metadata["name"],
            "metadata.namespace": metadata["namespace"],
            "metadata.uid": metadata["uid"],
            "spec.nodeName": spec.get("nodeName", ""),
            "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
            "status.podIP": self.pod_ip,
            "status.podIPs": self.pod_ip,
            "status.hostIP": self.host_ip,
            "status.hostIPs": self.host_ip,
        }
        if path in ("metadata.labels", "metadata.annotations"):
            entries = metadata.get(path.removeprefix("metadata.")) or {}
            return "\n".join(f'{key}="{_escape(value)}"' for key, value in sorted(entries.items()))
        if path not in simple:
            raise ConfigError(f"fieldRef {path!r} is not supported")
        return simple[path]

    def resource_field(self, reference: JsonObject, container: JsonObject | None) -> str:
        """Value of a resourceFieldRef: the amount divided by the divisor, rounded up."""
        if container is None or reference.get("containerName", container["name"]) != container["name"]:
            wanted = reference.get("containerName")
            container = next((item for item in self.pod["spec"]["containers"] if item["name"] == wanted), None)
        if container is None:
            raise ConfigError(f"resourceFieldRef: no container {reference.get('containerName')!r}")
        which, _, name = reference["resource"].partition(".")
        resources = container.get("resources") or {}
        amount = (resources.get(which) or {}).get(name)
        if amount is None and which == "limits":
            amount = self.node_allocatable.get(name)
        divisor = parse_quantity(reference.get("divisor") or "1") or Decimal(1)
        return str(ceil(parse_quantity(amount or "0") / divisor))


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def decoded(secret: JsonObject) -> dict[str, bytes]:
    """A Secret's entries."""
    return {key: base64.b64decode(value) for key, value in (secret.get("data") or {}).items()}


def config_entries(kind: str, obj: JsonObject) -> dict[str, bytes]:
    """Entries of a ConfigMap or a Secret as bytes."""
    if kind == "Secret":
        return decoded(obj)
    entries = {key: value.encode() for key, value in (obj.get("data") or {}).items()}
    return entries | {key: base64.b64decode(value) for key, value in (obj.get("binaryData") or {}).items()}


async def _key_value(kind: str, reference: JsonObject, lookup: Lookup) -> str | None:
    """Value that a secretKeyRef or configMapKeyRef names; None when it is optional and missing."""
    name, key = reference.get("name", ""), reference["key"]
    obj = await lookup(kind, name)
    if obj is None:
        if reference.get("optional"):
            return None
        raise ConfigError(f'{kind.lower()} "{name}" not found')
    entries = config_entries(kind, obj)
    if key not in entries:
        if reference.get("optional"):
            return None
        raise ConfigError(f"couldn't find key {key} in {kind} {obj['metadata']['namespace']}/{name}")
    return entries[key].decode(errors="replace")


async def _from_sources(container: JsonObject, lookup: Lookup) -> dict[str, str]:
    found: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            reference = source.get(key)
            if not reference:
                continue
            obj = await lookup(kind, reference["name"])
            if obj is None:
                if reference.get("optional"):
                    continue
                raise ConfigError(f'{kind.lower()} "{reference["name"]}" not found')
            for name, value in config_entries(kind, obj).items():
                found[source.get("prefix", "") + name] = value.decode(errors="replace")
    return found


async def container_environment(
    container: JsonObject, facts: PodFacts, lookup: Lookup, initial: Mapping[str, str]
) -> dict[str, str]:
    """`initial`, then envFrom, then env, each later one winning. Raises `ConfigError`."""
    values = dict(initial) | await _from_sources(container, lookup)
    for entry in container.get("env") or []:
        name, source = entry["name"], entry.get("valueFrom") or {}
        value: str | None
        if not source:
            value = expand(entry.get("value") or "", values)
        elif "fieldRef" in source:
            value = facts.field(source["fieldRef"]["fieldPath"])
        elif "resourceFieldRef" in source:
            value = facts.resource_field(source["resourceFieldRef"], container)
        elif "secretKeyRef" in source:
            value = await _key_value("Secret", source["secretKeyRef"], lookup)
        elif "configMapKeyRef" in source:
            value = await _key_value("ConfigMap", source["configMapKeyRef"], lookup)
        else:
            raise ConfigError(f"env {name}: valueFrom {sorted(source)} is not supported")
        if value is not None:
            values[name] = value
    return values


def _variable(name: str) -> str:
    return name.upper().replace("-", "_")


def service_variables(services: Iterable[JsonObject]) -> dict[str, str]:
    """The variables by which containers find Services that have an address: FOO_SERVICE_HOST, FOO_SERVICE_PORT, ...

    Source: k8s.io/kubernetes/pkg/kubelet/envvars.FromServices.
    """
    found: dict[str, str] = {}
    for service in services:
        spec = service["spec"]
        address, ports = spec.get("clusterIP"), spec.get("ports") or []
        if not address or address == "None" or spec.get("type") == "ExternalName" or not ports:
            continue
        name = _variable(service["metadata"]["name"])
        found[f"{name}_SERVICE_HOST"] = address
        found[f"{name}_SERVICE_PORT"] = str(ports[0]["port"])
        for index, port in enumerate(ports):
            if port.get("name"):
                found[f"{name}_SERVICE_PORT_{_variable(port['name'])}"] = str(port["port"])
            protocol = port.get("protocol", "TCP")
            url = f"{protocol.lower()}://{address}:{port['port']}"
            if index == 0:
                found[f"{name}_PORT"] = url
            prefix = f"{name}_PORT_{port['port']}_{protocol}"
            found[prefix] = url
            found[f"{prefix}_PROTO"] = protocol.lower()
            found[f"{prefix}_PORT"] = str(port["port"])
            found[f"{prefix}_ADDR"] = address
    return found


def linked_services(
    pod: JsonObject, services: Iterable[JsonObject], api_address: str, api_port: int
) -> list[JsonObject]:
    """The Services that a pod is told of: those of its namespace (unless enableServiceLinks is false), and the API.

    The API server's own address stands for the Service `kubernetes`, which leads nowhere on this computer.
    """
    namespace = pod["metadata"]["namespace"]
    api: JsonObject = {
        "metadata": {"name": "kubernetes", "namespace": "default"},
        "spec": {"clusterIP": api_address, "ports": [{"name": "https", "port": api_port}]},
    }
    if pod["spec"].get("enableServiceLinks") is False:
        return [api]
    own = [
        item
        for item in services
        if item["metadata"]["namespace"] == namespace
        and (namespace, item["metadata"]["name"]) != ("default", "kubernetes")
    ]
    return [*sorted(own, key=lambda item: str(item["metadata"]["name"])), api]
