"""Namespaces, nodes, ConfigMaps, Secrets, ServiceAccounts and Events."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from .. import errors, names
from ..errors import Cause
from ..resource import Column, Strategy, WithStatus
from ..store import Obj
from ..tables import AGE, NAME, age, object_age

CORE = "io.k8s.api.core.v1"
NOT_READY_TAINT = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}
_MAX_DATA_BYTES = 1024 * 1024


class NamespaceStrategy(WithStatus):
    """Namespaces: the `kubernetes` finalizer in spec.finalizers, phase Active or Terminating."""

    name_rule = staticmethod(names.dns_label)
    returns_deleted = True
    columns = (NAME, Column("Status", description="The status of the namespace"), AGE)

    def prepare_create(self, obj: Obj) -> None:
        obj["status"] = {"phase": "Active"}
        finalizers = obj.setdefault("spec", {}).setdefault("finalizers", [])
        if "kubernetes" not in finalizers:
            finalizers.append("kubernetes")

    def prepare_update(self, new: Obj, old: Obj) -> None:
        new["spec"], new["status"] = old.get("spec", {}), old.get("status", {})

    def default(self, obj: Obj) -> None:
        # So that a Service or NetworkPolicy can select a namespace by its name.
        if name := obj["metadata"].get("name"):
            obj["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = name

    def cells(self, obj: Obj) -> list[Any]:
        return [obj["metadata"]["name"], obj.get("status", {}).get("phase", ""), object_age(obj)]


class NodeStrategy(WithStatus):
    """Nodes; a new one is tainted not-ready until the node lifecycle controller sees it Ready."""

    columns = (
        NAME,
        Column("Status", description="The status of the node"),
        Column("Roles", description="The roles of the node"),
        AGE,
        Column("Version", description="Kubelet Version reported by the node."),
        Column("Internal-IP", description="List of addresses reachable to the node.", priority=1),
        Column("External-IP", description="List of addresses reachable to the node.", priority=1),
        Column("OS-Image", description="OS Image reported by the node.", priority=1),
        Column("Kernel-Version", description="Kernel Version reported by the node.", priority=1),
        Column("Container-Runtime", description="ContainerRuntime Version reported by the node.", priority=1),
    )

    def prepare_create(self, obj: Obj) -> None:
        # Nodes are the kind whose status is kept on create: kubelets register with it.
        taints = obj.setdefault("spec", {}).setdefault("taints", [])
        if not any(taint.get("key") == NOT_READY_TAINT["key"] for taint in taints):
            taints.append(dict(NOT_READY_TAINT))

    def default(self, obj: Obj) -> None:
        obj.setdefault("spec", {})
        status = obj.setdefault("status", {})
        if "capacity" in status:
            status.setdefault("allocatable", dict(status["capacity"]))

    def validate(self, obj: Obj) -> list[Cause]:
        found = []
        seen = set()
        for index, taint in enumerate(obj.get("spec", {}).get("taints") or []):
            field = f"metadata.taints[{index}]"
            key, effect = taint.get("key", ""), taint.get("effect", "")
            found += [errors.invalid_value(f"{field}.key", key, text) for text in names.qualified(key)]
            found += [
                errors.invalid_value(f"{field}.value", taint["value"], text)
                for text in names.label_value(taint.get("value", ""))
            ]
            if effect not in ("NoSchedule", "PreferNoSchedule", "NoExecute"):
                supported = ("NoSchedule", "PreferNoSchedule", "NoExecute")
                found.append(errors.unsupported_value(f"{field}.effect", effect, supported))
            if (key, effect) in seen:
                found.append(errors.duplicate_value(field, taint))
            seen.add((key, effect))
        return found

    def cells(self, obj: Obj) -> list[Any]:
        status, meta = obj.get("status", {}), obj["metadata"]
        ready = next((item for item in status.get("conditions") or [] if item["type"] == "Ready"), None)
        words = "Unknown" if ready is None else "Ready" if ready["status"] == "True" else "NotReady"
        if obj.get("spec", {}).get("unschedulable"):
            words += ",SchedulingDisabled"
        prefix = "node-role.kubernetes.io/"
        roles = sorted(key[len(prefix) :] for key in meta.get("labels") or {} if key.startswith(prefix))
        info = status.get("nodeInfo", {})
        address = {item["type"]: item["address"] for item in reversed(status.get("addresses") or [])}
        return [
            meta["name"],
            words,
            ",".join(roles) or "<none>",
            object_age(obj),
            info.get("kubeletVersion", ""),
            address.get("InternalIP", "<none>"),
            address.get("ExternalIP", "<none>"),
            info.get("osImage") or "<unknown>",
            info.get("kernelVersion") or "<unknown>",
            info.get("containerRuntimeVersion") or "<unknown>",
        ]


def _immutable(new: Obj, old: Obj, keys: tuple[str, ...]) -> list[Cause]:
    if not old.get("immutable"):
        return []
    found = []
    if not new.get("immutable"):
        found.append(errors.forbidden_value("immutable", "field is immutable when `immutable` is set"))
    for key in keys:
        if (new.get(key) or {}) != (old.get(key) or {}):
            found.append(errors.forbidden_value(key, "field is immutable when `immutable` is set"))
    return found


class ConfigMapStrategy(Strategy):
    """ConfigMaps, with `immutable`."""

    columns = (NAME, Column("Data", description="Number of entries."), AGE)

    def validate(self, obj: Obj) -> list[Cause]:
        found, size = [], 0
        data, binary = obj.get("data") or {}, obj.get("binaryData") or {}
        for field, values in (("data", data), ("binaryData", binary)):
            for key, value in values.items():
                found += [errors.invalid_value(f"{field}[{key}]", key, text) for text in names.config_key(key)]
                size += len(value.encode())
        for key in data.keys() & binary.keys():
            found.append(errors.invalid_value(f"data[{key}]", key, "duplicate of key present in binaryData"))
        if size > _MAX_DATA_BYTES:
            found.append(errors.too_long("", _MAX_DATA_BYTES))
        return found

    def validate_update(self, new: Obj, old: Obj) -> list[Cause]:
        return _immutable(new, old, ("data", "binaryData")) + self.validate(new)

    def cells(self, obj: Obj) -> list[Any]:
        size = len(obj.get("data") or {}) + len(obj.get("binaryData") or {})
        return [obj["metadata"]["name"], str(size), object_age(obj)]


class SecretStrategy(Strategy):
    """Secrets: stringData is folded into data; type is immutable."""

    returns_deleted = False
    columns = (
        NAME,
        Column("Type", description="Used to facilitate programmatic handling of secret data."),
        Column("Data", description="Number of entries."),
        AGE,
    )

    def default(self, obj: Obj) -> None:
        obj.setdefault("type", "Opaque")
        for key, value in (obj.pop("stringData", None) or {}).items():
            obj.setdefault("data", {})[key] = base64.b64encode(value.encode()).decode()

    def validate(self, obj: Obj) -> list[Cause]:
        found, size = [], 0
        for key, value in (obj.get("data") or {}).items():
            found += [errors.invalid_value(f"data[{key}]", key, text) for text in names.config_key(key)]
            try:
                size += len(base64.b64decode(value, validate=True))
            except binascii.Error:
                found.append(errors.invalid_value(f"data[{key}]", "<redacted>", "must be base64"))
        if size > _MAX_DATA_BYTES:
            found.append(errors.too_long("data", _MAX_DATA_BYTES))
        needed = {"kubernetes.io/dockerconfigjson": ".dockerconfigjson", "kubernetes.io/dockercfg": ".dockercfg"}
        if (key := needed.get(obj["type"], "")) and key not in (obj.get("data") or {}):
            found.append(errors.required(f"data[{key}]"))
        if obj["type"] == "kubernetes.io/tls":
            for key in ("tls.crt", "tls.key"):
                if key not in (obj.get("data") or {}):
                    found.append(errors.required(f"data[{key}]"))
        return found

    def validate_update(self, new: Obj, old: Obj) -> list[Cause]:
        found = _immutable(new, old, ("data",))
        if new["type"] != old.get("type"):
            found.append(errors.invalid_value("type", new["type"], "field is immutable"))
        return found + self.validate(new)

    def cells(self, obj: Obj) -> list[Any]:
        return [obj["metadata"]["name"], obj.get("type", ""), str(len(obj.get("data") or {})), object_age(obj)]


class ServiceAccountStrategy(Strategy):
    """ServiceAccounts."""

    returns_deleted = True
    columns = (NAME, Column("Secrets", description="Number of secrets."), AGE)

    def cells(self, obj: Obj) -> list[Any]:
        return [obj["metadata"]["name"], str(len(obj.get("secrets") or [])), object_age(obj)]


class EventStrategy(Strategy):
    """Events in the core form, which is also how they are stored."""

    create_on_update = True
    columns = (
        Column("Last Seen", description="The time at which the most recent occurrence was recorded."),
        Column("Type", description="Type of this event (Normal, Warning)."),
        Column("Reason", description="Short, machine understandable reason."),
        Column("Object", description="The object that this event is about."),
        Column("Subobject", description="Path of the part of the object.", priority=1),
        Column("Source", description="The component reporting this event.", priority=1),
        Column("Message", description="A human-readable description."),
        Column("First Seen", description="The time at which the event was first recorded.", priority=1),
        Column("Count", description="The number of times this event has occurred.", priority=1),
        Column("Name", format="name", description="Name of the event", priority=1),
    )

    def default(self, obj: Obj) -> None:
        # Go prints these structs and this time even when they are empty.
        obj.setdefault("source", {})
        obj.setdefault("eventTime", None)

    def validate(self, obj: Obj) -> list[Cause]:
        involved = (obj.get("involvedObject") or {}).get("namespace", "")
        namespace = obj["metadata"].get("namespace", "")
        if (involved or "default") != namespace and not (not involved and namespace == "kube-system"):
            return [errors.invalid_value("involvedObject.namespace", involved, "does not match event.namespace")]
        if obj.get("eventTime") is not None:
            return self._validate_new_style(obj)
        return []

    def _validate_new_style(self, obj: Obj) -> list[Cause]:
        found = []
        for key in ("reportingComponent", "reportingInstance", "action", "reason"):
            if not obj.get(key):
                found.append(errors.required(key))
            elif len(obj[key]) > 128:
                found.append(errors.invalid_value(key, "", "can have at most 128 characters"))
        if len(obj.get("message", "")) > 1024:
            found.append(errors.invalid_value("message", "", "can have at most 1024 characters"))
        if obj.get("type") not in ("Normal", "Warning"):
            found.append(errors.invalid_value("type", obj.get("type", ""), "has invalid value"))
        return found

    def cells(self, obj: Obj) -> list[Any]:
        involved = obj.get("involvedObject", {})
        first = obj.get("firstTimestamp") or obj.get("eventTime")
        series = obj.get("series") or {}
        last = series.get("lastObservedTime") or obj.get("lastTimestamp") or first
        source = obj.get("source") or {}
        component = source.get("component") or obj.get("reportingComponent", "")
        count = series.get("count") or obj.get("count") or 1
        return [
            age(last),
            obj.get("type", ""),
            obj.get("reason", ""),
            f"{involved.get('kind', '').lower()}/{involved.get('name', '')}",
            involved.get("fieldPath", ""),
            f"{component}, {source['host']}" if source.get("host") else component,
            obj.get("message", "").strip(),
            age(first),
            count,
            obj["metadata"]["name"],
        ]
