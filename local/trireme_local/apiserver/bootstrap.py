"""What exists in a cluster from the start, and what follows by itself from a write."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import resources as files
from typing import Any

import yaml

from . import errors, rbac
from .admission import SYSTEM_NAMESPACES
from .auth import User
from .builtins.crds import CLEANUP_FINALIZER, CrdStrategy
from .operations import DeleteOptions, Operations, WriteOptions
from .registry import CRD_KEY
from .resource import Resource
from .store import Obj
from .tables import parse_time

_SYSTEM = User("system:apiserver", groups=("system:masters",))
_PRIORITIES = (("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000))


def system_options() -> WriteOptions:
    """Options of the server's own writes."""
    return WriteOptions(_SYSTEM, "kube-apiserver")


def _ensure(operations: Operations, group: str, plural: str, namespace: str, body: Obj) -> None:
    resource = operations.registry.find(group, "v1", plural)
    assert resource is not None, plural
    if operations.store.get(resource.storage, namespace, body["metadata"]["name"]) is None:
        operations.create(resource, namespace, body, system_options())


def ensure_system_objects(operations: Operations) -> None:
    """Create the system namespaces, their default service accounts, priority classes and ClusterRoles."""
    for name in SYSTEM_NAMESPACES:
        _ensure(operations, "", "namespaces", "", {"metadata": {"name": name}})
        _ensure(operations, "", "serviceaccounts", name, {"metadata": {"name": "default"}})
    for name, value in _PRIORITIES:
        body = {"metadata": {"name": name}, "value": value, "description": "Used for system critical pods."}
        _ensure(operations, "scheduling.k8s.io", "priorityclasses", "", body)

    for entry in operations.store.list(CRD_KEY):
        if "conditions" not in entry.obj["status"]:
            _establish(operations, entry.obj)
    for role in yaml.safe_load(files.files(__package__).joinpath("roles.yaml").read_text()):
        _ensure_role(operations, role)


def _ensure_role(operations: Operations, role: dict[str, Any]) -> None:
    name = role["name"]
    labels = {"kubernetes.io/bootstrapping": "rbac-defaults", **role.get("labels", {})}
    body: Obj = {"metadata": {"name": name, "labels": labels}, "rules": role.get("rules", [])}
    if to := role.get("aggregate"):
        label = f"{rbac.GROUP}/aggregate-to-{to[0]}"
        body["aggregationRule"] = {"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]}
    _ensure(operations, rbac.GROUP, "clusterroles", "", body)
    if subjects := role.get("subjects"):
        reference = {"apiGroup": rbac.GROUP, "kind": "ClusterRole", "name": name}
        binding = {"metadata": {"name": name, "labels": labels}, "roleRef": reference, "subjects": subjects}
        _ensure(operations, rbac.GROUP, "clusterrolebindings", "", binding)


def expire_events(operations: Operations, ttl_seconds: float) -> None:
    """Remove the events that nobody has written for this long."""
    oldest = datetime.now(UTC).timestamp() - ttl_seconds
    resource = operations.registry.find("", "v1", "events")
    assert resource is not None
    for entry in operations.store.list(resource.storage):
        series = entry.obj.get("series") or {}
        times = (series.get("lastObservedTime"), entry.obj.get("lastTimestamp"), entry.obj.get("eventTime"))
        written = max(
            parse_time(text).timestamp() for text in (entry.obj["metadata"]["creationTimestamp"], *times) if text
        )
        if written < oldest:
            operations.delete(resource, entry.namespace, entry.name, DeleteOptions())


def install_hooks(operations: Operations) -> None:
    """Keep the registry in step with CRDs, and give each namespace its default service account."""

    def follow_crds(resource: Resource, new: Obj | None, old: Obj | None) -> None:
        if resource.storage == CRD_KEY:
            if new is None:
                assert old is not None
                operations.registry.crd_removed(old["metadata"]["name"])
                return
            if "conditions" not in new["status"]:
                _establish(operations, new)
                return
            operations.registry.crd_changed(new)
            if old is not None and old["spec"] != new["spec"]:
                read_by_schema(operations, new)
            if new["metadata"].get("deletionTimestamp"):
                _empty_crd(operations, new)
        elif resource.custom and new is None and operations.registry.is_terminating(resource):
            _finish_crd(operations, f"{resource.plural}.{resource.group}")

    def follow_namespaces(resource: Resource, new: Obj | None, old: Obj | None) -> None:
        if resource.storage == "/namespaces" and new is not None and old is None:
            name = new["metadata"]["name"]
            if name not in SYSTEM_NAMESPACES:
                _ensure(operations, "", "serviceaccounts", name, {"metadata": {"name": "default"}})

    def follow_roles(resource: Resource, new: Obj | None, old: Obj | None) -> None:
        if resource.storage == f"{rbac.GROUP}/clusterroles":
            _aggregate_roles(operations, resource)

    operations.hooks += [follow_crds, follow_namespaces, follow_roles]


def _establish(operations: Operations, crd: Obj) -> None:
    """Accept the names of a new CRD and serve its kind."""
    resource = operations.registry.find("apiextensions.k8s.io", "v1", "customresourcedefinitions")
    assert resource is not None
    new = CrdStrategy.established(crd)
    operations.replace(resource, "", crd["metadata"]["name"], new, system_options(), "status")


def _aggregate_roles(operations: Operations, resource: Resource) -> None:
    """Write the rules of aggregating ClusterRoles; a role that changes by this triggers the next level."""
    for entry in operations.store.list(resource.storage):
        if entry.obj.get("aggregationRule"):
            rules = rbac.aggregated_rules(operations.store, entry.obj)
            if rules != (entry.obj.get("rules") or []):
                operations.replace(resource, "", entry.name, {**entry.obj, "rules": rules}, system_options())
                return


def read_by_schema(operations: Operations, crd: Obj) -> None:
    """Prune and default the stored objects of a CRD by its schema of now, as a real server does on every read."""
    resource = operations.registry.any_version(crd["spec"]["group"], crd["spec"]["names"]["plural"])
    if resource is None:
        return
    for entry in operations.store.list(resource.storage):
        read, _ = resource.strategy.decode(entry.obj)
        resource.strategy.default(read)
        if read != entry.obj:
            operations.store.reinterpret(resource.storage, entry.namespace, entry.name, read)


def _empty_crd(operations: Operations, crd: Obj) -> None:
    """Delete all objects of a CRD that is being deleted; it goes with the last of them."""
    group, plural = crd["spec"]["group"], crd["spec"]["names"]["plural"]
    resource = operations.registry.any_version(group, plural)
    if resource is not None:
        for entry in operations.store.list(resource.storage):
            try:
                operations.delete(resource, entry.namespace, entry.name, DeleteOptions())
            except errors.ApiError as error:
                if error.code != 404:
                    raise
    _finish_crd(operations, crd["metadata"]["name"])


def _finish_crd(operations: Operations, name: str) -> None:
    crds = operations.registry.find("apiextensions.k8s.io", "v1", "customresourcedefinitions")
    entry = operations.store.get(CRD_KEY, "", name)
    if crds is None or entry is None:
        return
    spec = entry.obj["spec"]
    if operations.store.count(f"{spec['group']}/{spec['names']['plural']}") == 0:
        meta = entry.obj["metadata"]
        kept = [item for item in meta.get("finalizers", ()) if item != CLEANUP_FINALIZER]
        new = {**entry.obj, "metadata": {**meta, "finalizers": kept}}
        operations.replace(crds, "", name, new, system_options())
