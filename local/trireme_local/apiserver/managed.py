"""metadata.managedFields: who owns which field, on every write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import definitions, fieldset
from .fieldset import EMPTY, FieldSet, Node, Path
from .resource import Resource, Strategy, now
from .store import Obj

# Never owned by anyone: identity and what the server itself keeps.
_STRIPPED: frozenset[Path] = frozenset(
    {("f:apiVersion",), ("f:kind",), ("f:metadata",)}
    | {
        ("f:metadata", f"f:{name}")
        for name in (
            "name",
            "namespace",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
            "uid",
            "generation",
            "managedFields",
            "resourceVersion",
        )
    }
)


@dataclass(frozen=True)
class Owner:
    """The identity of one entry of managedFields."""

    manager: str
    operation: str  # Apply or Update
    api_version: str
    subresource: str = ""


@dataclass(frozen=True)
class Ownership:
    """What one owner owns, and since when."""

    fields: FieldSet
    time: str


Owners = dict[Owner, Ownership]


def root(strategy: Strategy) -> Node:
    """The merge behaviour of a whole object."""
    schema = strategy.schema
    if strategy.definition:
        return fieldset.node(schema)
    meta = definitions.named(definitions.OBJECT_META)
    properties: dict[str, Any] = {**schema.get("properties", {}), "metadata": meta}
    for name in ("apiVersion", "kind"):
        properties.setdefault(name, {"type": "string"})
    return fieldset.node({**schema, "type": "object", "properties": properties})


def read(obj: Obj) -> Owners:
    """The owners that an object records."""
    owners: Owners = {}
    for entry in obj["metadata"].get("managedFields") or ():
        owner = Owner(
            entry.get("manager", ""),
            entry.get("operation", ""),
            entry.get("apiVersion", ""),
            entry.get("subresource", ""),
        )
        paths = frozenset(fieldset.from_fields_v1(entry.get("fieldsV1") or {}))
        owners[owner] = Ownership(paths, entry.get("time", ""))
    return owners


def write(obj: Obj, owners: Owners) -> None:
    """Record owners in an object, in place; owners of nothing are left out."""
    entries = []
    kept = {owner: owned for owner, owned in owners.items() if owned.fields}
    for owner in sorted(kept, key=lambda item: (item.operation, kept[item].time, item.manager, item.subresource)):
        entry: Obj = {
            "manager": owner.manager,
            "operation": owner.operation,
            "apiVersion": owner.api_version,
            "time": kept[owner].time,
            "fieldsType": "FieldsV1",
            "fieldsV1": fieldset.to_fields_v1(kept[owner].fields),
        }
        if owner.subresource:
            entry["subresource"] = owner.subresource
        entries.append(entry)
    if entries:
        obj["metadata"]["managedFields"] = entries
    else:
        obj["metadata"].pop("managedFields", None)


def strip(paths: FieldSet | set[Path], resource: Resource, subresource: str) -> FieldSet:
    """Paths that a write through this (sub)resource can own."""
    has_status = "status" in resource.subresources

    def kept(path: Path) -> bool:
        if path in _STRIPPED:
            return False
        if subresource == "status":
            return path[0] == "f:status" or (path[0] == "f:metadata" and not resource.custom)
        return not (has_status and path[0] == "f:status")

    return frozenset(path for path in paths if kept(path))


def _body(obj: Obj) -> Obj:
    """An object without its managedFields."""
    meta = {key: value for key, value in obj["metadata"].items() if key != "managedFields"}
    return {**obj, "metadata": meta}


def track(resource: Resource, new: Obj, old: Obj | None, manager: str, subresource: str) -> None:
    """Record the fields that a create or update changed as owned by `manager`, in place.

    A client may empty managedFields on purpose (a list with one empty entry); anything else it sends is ignored.
    """
    sent = new["metadata"].get("managedFields")
    owners = read(old) if old is not None and sent not in ([], [{}]) else {}
    before = _body(old) if old is not None else {"metadata": {}}
    if old is not None and before == _body(new):
        write(new, owners)
        return
    difference = fieldset.compare(before, _body(new), root(resource.strategy))
    changed = strip(difference.changed, resource, subresource)
    removed = strip(difference.removed, resource, subresource)
    me = Owner(manager, "Update", resource.api_version, subresource)
    result: Owners = {}
    for owner, owned in owners.items():
        fields = owned.fields - removed
        result[owner] = Ownership(fields if owner == me else fields - changed, owned.time)
    mine = result.get(me, Ownership(EMPTY, ""))
    fields = mine.fields | changed
    kept_time = fields == owners.get(me, mine).fields and bool(mine.time)
    result[me] = Ownership(fields, mine.time if kept_time else now())
    write(new, result)


def same(new: Obj, old: Obj) -> bool:
    """Whether a write would change nothing but times in managedFields."""
    if _body(new) != _body(old):
        return False
    before, after = read(old), read(new)
    return {key: item.fields for key, item in before.items()} == {key: item.fields for key, item in after.items()}
