"""What the node authorizer and the NodeRestriction admission plugin let a node do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import errors, identities
from .auth import User
from .store import Obj, Store

if TYPE_CHECKING:
    from .rbac import Attributes

_PREFIX = "system:node:"
_LEASES = "kube-node-lease"
_READ = ("get", "list", "watch")
_FREE: dict[tuple[str, str], tuple[str, ...]] = {
    ("", "services"): _READ,
    ("", "nodes"): (*_READ, "create", "patch", "update", "delete"),
    ("", "nodes/status"): ("patch", "update"),
    ("", "pods"): (*_READ, "create", "delete"),
    ("", "pods/status"): ("patch", "update"),
    ("", "events"): ("create", "patch", "update"),
    ("authentication.k8s.io", "tokenreviews"): ("create",),
    ("authorization.k8s.io", "subjectaccessreviews"): ("create",),
    ("authorization.k8s.io", "localsubjectaccessreviews"): ("create",),
    ("", "namespaces"): _READ,
    ("discovery.k8s.io", "endpointslices"): _READ,
}
# Only objects that a pod on the node refers to.
_REFERENCED = ("secrets", "configmaps")


def node_name(user: User) -> str:
    """The node that a user is, "" for everyone else."""
    if identities.NODES_GROUP in user.groups and user.name.startswith(_PREFIX):
        return user.name[len(_PREFIX) :]
    return ""


def allowed(store: Store, user: User, wanted: Attributes) -> bool:
    """Whether a node may do this."""
    node = node_name(user)
    if not node:
        return False
    if wanted.verb in _FREE.get((wanted.group, wanted.combined), ()):
        return True
    if wanted.group == "coordination.k8s.io" and wanted.resource == "leases":
        return wanted.namespace == _LEASES and (wanted.name == node or wanted.verb == "create")
    if wanted.group:
        return False
    pods = [entry.obj for entry in store.list("/pods", wanted.namespace) if entry.obj["spec"].get("nodeName") == node]
    if wanted.resource in _REFERENCED and not wanted.subresource and wanted.verb in _READ and wanted.name:
        return any(_refers(pod["spec"], wanted.resource, wanted.name) for pod in pods)
    if wanted.resource == "serviceaccounts" and wanted.name:
        if wanted.subresource == "token" and wanted.verb == "create":
            return any(pod["spec"].get("serviceAccountName") == wanted.name for pod in pods)
        return wanted.verb == "get" and not wanted.subresource
    return False


def _refers(value: Any, plural: str, name: str) -> bool:
    """Whether a pod spec names a secret or config map anywhere."""
    keys = (
        ("secretRef", "secretKeyRef", "secret")
        if plural == "secrets"
        else ("configMapRef", "configMapKeyRef", "configMap")
    )
    if isinstance(value, dict):
        for key, item in value.items():
            if key in keys and isinstance(item, dict) and name in (item.get("name"), item.get("secretName")):
                return True
            if key == "imagePullSecrets" and plural == "secrets" and {"name": name} in item:
                return True
            if _refers(item, plural, name):
                return True
    elif isinstance(value, list):
        return any(_refers(item, plural, name) for item in value)
    return False


def restrict(user: User, plural: str, subresource: str, verb: str, obj: Obj) -> None:
    """NodeRestriction: a node writes its own Node and the pods bound to it. Raises ApiError 403."""
    node = node_name(user)
    if not node:
        return
    name = obj["metadata"].get("name", "")
    if plural == "nodes" and name != node:
        why = f'node "{node}" is not allowed to modify node "{name}"'
        raise errors.forbidden("", plural, name, why)
    if plural == "pods" and verb == "create":
        why = f'pod does not have "kubernetes.io/config.mirror" annotation, node "{node}" can only create mirror pods'
        raise errors.forbidden("", plural, name, why)
    if plural == "pods" and obj["spec"].get("nodeName") != node:
        why = f'node "{node}" can only {verb} pods with spec.nodeName set to itself'
        raise errors.forbidden("", plural, name, why)
