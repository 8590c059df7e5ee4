"""What the API server's built-in admission plugins do to objects."""

from __future__ import annotations

import ipaddress
import secrets
from typing import Any

from . import errors
from .auth import User
from .builtins import services
from .registry import CRD_KEY, Registry
from .resource import Resource
from .store import Obj, Store

SYSTEM_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
_PERMANENT = ("default", "kube-system", "kube-public")
_UNREACHABLE_SECONDS = 300
_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


def check_namespace(store: Store, resource: Resource, namespace: str, name: str) -> None:
    """NamespaceLifecycle: the namespace must exist and must not be on its way out."""
    if not resource.namespaced:
        return
    entry = store.get("/namespaces", "", namespace)
    if entry is None:
        raise errors.not_found("", "namespaces", namespace)
    if entry.obj["metadata"].get("deletionTimestamp"):
        why = f"unable to create new content in namespace {namespace} because it is being terminated"
        error = errors.forbidden(resource.group, resource.plural, name, why)
        error.details = (error.details or {}) | {
            "causes": [
                {
                    "reason": "NamespaceTerminating",
                    "message": f"namespace {namespace} is being terminated",
                    "field": "metadata.namespace",
                }
            ]
        }
        raise error


def mutate_create(store: Store, resource: Resource, obj: Obj, user: User) -> None:
    """Admission plugins that change a new object, in place."""
    if resource.storage == "/pods":
        _service_account(store, resource, obj)
        _priority(store, resource, obj)
        _default_tolerations(obj)


def mutate_update(store: Store, resource: Resource, new: Obj, old: Obj, service_network: ipaddress.IPv4Network) -> None:
    """Admission plugins that change an updated object, in place."""
    if resource.storage == "/services" and not new["spec"].get("clusterIP"):
        # One that was an ExternalName until now.
        services.allocate_cluster_ip(new, _taken_addresses(store), service_network)
    if resource.storage == "/pods":
        for key in ("priority", "preemptionPolicy"):
            if key not in new["spec"] and key in old["spec"]:
                new["spec"][key] = old["spec"][key]


def _service_account(store: Store, resource: Resource, obj: Obj) -> None:
    spec, meta = obj["spec"], obj["metadata"]
    if "kubernetes.io/config.mirror" in meta.get("annotations", {}):
        return
    name = spec.setdefault("serviceAccountName", "default")
    spec["serviceAccount"] = name
    entry = store.get("/serviceaccounts", meta["namespace"], name)
    if entry is None:
        why = f'error looking up service account {meta["namespace"]}/{name}: serviceaccount "{name}" not found'
        raise errors.forbidden("", resource.plural, meta.get("name", ""), why)
    if entry.obj.get("imagePullSecrets") and not spec.get("imagePullSecrets"):
        spec["imagePullSecrets"] = list(entry.obj["imagePullSecrets"])
    if spec.get("automountServiceAccountToken", entry.obj.get("automountServiceAccountToken", True)):
        _mount_token(spec)


def _mount_token(spec: Obj) -> None:
    """Give every container that mounts nothing at the usual path a token of its service account there."""
    containers = [item for kind in ("initContainers", "containers") for item in spec.get(kind, ())]
    wanting = [
        item
        for item in containers
        if not any(mount.get("mountPath") == _TOKEN_PATH for mount in item.get("volumeMounts", ()))
    ]
    if not wanting:
        return
    name = "kube-api-access-" + "".join(secrets.choice(_ALPHABET) for _ in range(5))
    namespace = {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    sources = [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [namespace]}},
    ]
    spec.setdefault("volumes", []).append({"name": name, "projected": {"defaultMode": 0o644, "sources": sources}})
    for item in wanting:
        mount = {"name": name, "readOnly": True, "mountPath": _TOKEN_PATH}
        item.setdefault("volumeMounts", []).append(mount)


def _priority(store: Store, resource: Resource, obj: Obj) -> None:
    spec = obj["spec"]
    name = spec.get("priorityClassName")
    classes = [entry.obj for entry in store.list("scheduling.k8s.io/priorityclasses")]
    if name:
        found: Any = next((item for item in classes if item["metadata"]["name"] == name), None)
        if found is None:
            why = f"no PriorityClass with name {name} was found"
            raise errors.forbidden("", resource.plural, obj["metadata"].get("name", ""), why)
    else:
        found = max(
            (item for item in classes if item.get("globalDefault")), key=lambda item: item["value"], default=None
        )
        if found is not None:
            spec["priorityClassName"] = found["metadata"]["name"]
    value = found["value"] if found is not None else 0
    if "priority" in spec and spec["priority"] != value:
        why = "the integer value of priority must not be provided in pod spec; priority admission controller computed "
        raise errors.forbidden(
            "", resource.plural, obj["metadata"].get("name", ""), f"{why}{value} from the given PriorityClass name"
        )
    spec["priority"] = value
    spec.setdefault("preemptionPolicy", found["preemptionPolicy"] if found is not None else "PreemptLowerPriority")


def _default_tolerations(obj: Obj) -> None:
    """DefaultTolerationSeconds: stay 300 s on a node that is not ready or unreachable."""
    tolerations = obj["spec"].setdefault("tolerations", [])
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        covered = any(
            item.get("key") in (key, None, "") and item.get("effect") in ("NoExecute", None, "") for item in tolerations
        )
        if not covered:
            tolerations.append(
                {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": _UNREACHABLE_SECONDS}
            )


def _taken_addresses(store: Store) -> set[str]:
    return {entry.obj["spec"].get("clusterIP", "") for entry in store.list("/services")}


def before_create(
    store: Store, registry: Registry, resource: Resource, obj: Obj, service_network: ipaddress.IPv4Network
) -> None:
    """Checks and allocations that need the rest of the state."""
    if resource.storage == "/services":
        services.allocate_cluster_ip(obj, _taken_addresses(store), service_network)
    if resource.storage == CRD_KEY:
        spec = obj["spec"]
        if registry.kind_in_use(spec["group"], spec["names"]["kind"], spec["names"]["plural"]):
            name = obj["metadata"]["name"]
            raise errors.conflict(resource.group, resource.plural, name, "its kind or plural name is already in use")


def before_delete(resource: Resource, obj: Obj) -> None:
    """NamespaceLifecycle: the permanent namespaces stay."""
    name = obj["metadata"]["name"]
    if resource.storage == "/namespaces" and name in _PERMANENT:
        raise errors.forbidden("", "namespaces", name, "this namespace may not be deleted")
