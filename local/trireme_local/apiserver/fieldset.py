"""Sets of field paths and typed walks over objects, the arithmetic of server-side apply.

A path is a tuple of elements in the notation of FieldsV1: `f:<field>`, `k:<keys of a list item>`, `v:<set item>`.
The rules are those of structured-merge-diff: what counts as a leaf depends on list and map types of the schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import definitions
from .definitions import Schema
from .store import Obj

Path = tuple[str, ...]
FieldSet = frozenset[Path]
EMPTY: FieldSet = frozenset()
_ABSENT: Any = object()
_PROTOCOL = "protocol"


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def from_fields_v1(tree: Obj, prefix: Path = ()) -> Iterator[Path]:
    """The paths of a FieldsV1 tree."""
    for key, below in tree.items():
        if key == ".":
            yield prefix
        elif below:
            yield from from_fields_v1(below, (*prefix, key))
        else:
            yield (*prefix, key)


def to_fields_v1(paths: FieldSet) -> Obj:
    """The FieldsV1 tree of a set of paths."""
    tree: Obj = {}
    for path in sorted(paths):
        node = tree
        for element in path:
            node = node.setdefault(element, {})
        node["."] = {}
    _drop_lone_dots(tree)
    return tree


def _drop_lone_dots(tree: Obj) -> None:
    for key, below in tree.items():
        if key != ".":
            if list(below) == ["."]:
                del below["."]
            else:
                _drop_lone_dots(below)


def show(path: Path) -> str:
    """A path as error messages print it: `.spec.containers[name="c"].image`."""
    text = ""
    for element in path:
        kind, value = element[0], element[2:]
        if kind == "f":
            text += f".{value}"
        elif kind == "k":
            pairs = ",".join(f"{key}={_dump(item)}" for key, item in json.loads(value).items())
            text += f"[{pairs}]"
        else:
            text += f"[={value}]"
    return text


def with_ancestors(paths: FieldSet) -> FieldSet:
    """The paths and everything above them."""
    return frozenset(path[:length] for path in paths for length in range(1, len(path) + 1))


@dataclass(frozen=True)
class Node:
    """How one place of an object merges."""

    kind: str  # struct, map, list, set, atomic or untyped
    schema: Schema
    keys: tuple[str, ...] = ()

    def child(self, key: str) -> Node:
        """The node of a field or map entry."""
        if self.kind == "untyped":
            return UNTYPED
        known = self.schema.get("properties", {}).get(key)
        if known is None:
            extra = self.schema.get("additionalProperties")
            return node(extra) if isinstance(extra, dict) else UNTYPED
        return node(known)

    def is_field(self, key: str) -> bool:
        """Whether a key is a field of a struct rather than an entry of a map."""
        return key in self.schema.get("properties", {})

    def item(self) -> Node:
        """The node of a list item."""
        return node(self.schema.get("items", {}))

    def element(self, item: Any) -> str:
        """The path element of a list item."""
        if self.kind == "set":
            return "v:" + _dump(item)
        properties = definitions.resolve(self.schema.get("items", {})).get("properties", {})
        found = {}
        for key in self.keys:
            default = properties.get(key, {}).get("default", "TCP" if key == _PROTOCOL else None)
            found[key] = item.get(key, default) if isinstance(item, dict) else None
        return "k:" + _dump(found)


UNTYPED = Node("untyped", {})


def node(schema: Schema) -> Node:
    """The merge behaviour that a schema gives."""
    outer = schema
    if "allOf" in schema and "$ref" in schema["allOf"][0]:
        schema = schema["allOf"][0]
    schema = definitions.resolve(schema)
    if "type" not in schema and not schema.get("properties"):
        return UNTYPED if not schema.get("x-kubernetes-int-or-string") else Node("atomic", schema)
    kind = schema.get("type", "object")
    if kind == "object":
        if "atomic" in (outer.get("x-kubernetes-map-type"), schema.get("x-kubernetes-map-type")):
            return Node("atomic", schema)
        if "properties" in schema or isinstance(schema.get("additionalProperties"), dict):
            return Node("struct", schema)
        return UNTYPED
    if kind == "array":
        listed = outer.get("x-kubernetes-list-type", schema.get("x-kubernetes-list-type"))
        keys = tuple(outer.get("x-kubernetes-list-map-keys") or schema.get("x-kubernetes-list-map-keys") or ())
        if listed == "map" and keys:
            return Node("list", schema, keys)
        return Node("set", schema) if listed == "set" else Node("atomic", schema)
    return Node("atomic", schema)


def _descends(where: Node, value: Any) -> str:
    """Whether a value at a node is walked as a map, as a list, or is a leaf."""
    if isinstance(value, dict) and where.kind in ("struct", "untyped"):
        return "map"
    if isinstance(value, list) and where.kind in ("list", "set"):
        return "list"
    return "leaf"


def field_set(value: Any, where: Node, path: Path = ()) -> Iterator[Path]:
    """All paths that an applied configuration sets."""
    kind = _descends(where, value)
    if kind == "leaf":
        yield path
    elif kind == "map":
        for key, item in value.items():
            below = (*path, f"f:{key}")
            yield from field_set(item, where.child(key), below)
            if item is None or item == {} or not where.is_field(key):
                yield below
    else:
        for item in value:
            below = (*path, where.element(item))
            yield below
            if where.kind == "list":
                yield from field_set(item, where.item(), below)


def duplicates(value: Any, where: Node, path: Path = ()) -> Iterator[Path]:
    """Paths of list items whose key another item of the same list has too."""
    kind = _descends(where, value)
    if kind == "map":
        for key, item in value.items():
            yield from duplicates(item, where.child(key), (*path, f"f:{key}"))
    elif kind == "list":
        elements = [where.element(item) for item in value]
        for element in sorted({element for element in elements if elements.count(element) > 1}):
            yield (*path, element)
        for element, item in zip(elements, value, strict=True):
            if where.kind == "list":
                yield from duplicates(item, where.item(), (*path, element))


@dataclass
class Comparison:
    """What differs between two objects."""

    added: set[Path]
    modified: set[Path]
    removed: set[Path]

    @property
    def changed(self) -> FieldSet:
        """Added and modified paths."""
        return frozenset(self.added | self.modified)


def _all_nodes(value: Any, where: Node, path: Path) -> Iterator[Path]:
    """Every path of a value, containers included."""
    if path:
        yield path
    kind = _descends(where, value)
    if kind == "map":
        for key, item in value.items():
            yield from _all_nodes(item, where.child(key), (*path, f"f:{key}"))
    elif kind == "list":
        for item in value:
            below = (*path, where.element(item))
            if where.kind == "set":
                yield below
            else:
                yield from _all_nodes(item, where.item(), below)


def compare(old: Any, new: Any, where: Node) -> Comparison:
    """The difference of two objects of one schema."""
    found = Comparison(set(), set(), set())
    _compare(old, new, where, (), found)
    return found


def _compare(old: Any, new: Any, where: Node, path: Path, found: Comparison) -> None:
    if old is _ABSENT:
        found.added.update(_all_nodes(new, where, path))
        return
    if new is _ABSENT:
        found.removed.update(_all_nodes(old, where, path))
        return
    if old == new:
        return
    kinds = _descends(where, old), _descends(where, new)
    if kinds == ("map", "map"):
        for key in old.keys() | new.keys():
            below = (*path, f"f:{key}")
            _compare(old.get(key, _ABSENT), new.get(key, _ABSENT), where.child(key), below, found)
    elif kinds == ("list", "list"):
        before = {where.element(item): item for item in old}
        after = {where.element(item): item for item in new}
        child = where.item() if where.kind == "list" else Node("atomic", {})
        for element in before.keys() | after.keys():
            below = (*path, element)
            _compare(before.get(element, _ABSENT), after.get(element, _ABSENT), child, below, found)
    else:
        found.modified.add(path)


def merge(live: Any, config: Any, where: Node) -> Any:
    """The live value with an applied configuration merged in; neither is changed."""
    kinds = _descends(where, live), _descends(where, config)
    if kinds == ("map", "map"):
        result = dict(live)
        for key, item in config.items():
            result[key] = merge(live[key], item, where.child(key)) if key in live else item
        return result
    if kinds == ("list", "list"):
        return _merge_lists(live, config, where)
    return config


def _merge_lists(live: list[Any], config: list[Any], where: Node) -> list[Any]:
    """Items of both; those of the configuration in its order, live-only ones where they were."""
    before = {where.element(item): item for item in live}
    wanted = {where.element(item): item for item in config}
    pending = list(wanted)
    result: list[Any] = []

    def take(element: str) -> None:
        item = wanted[element]
        keep = element in before and where.kind == "list"
        result.append(merge(before[element], item, where.item()) if keep else item)

    for element, item in before.items():
        if element not in wanted:
            result.append(item)
        elif element in pending:
            while pending:
                first = pending.pop(0)
                take(first)
                if first == element:
                    break
    for element in pending:
        take(element)
    return result


def remove(value: Any, paths: FieldSet, where: Node, path: Path = ()) -> Any:
    """A copy without the values at these paths."""
    kind = _descends(where, value)
    if kind == "map":
        return {
            key: remove(item, paths, where.child(key), (*path, f"f:{key}"))
            for key, item in value.items()
            if (*path, f"f:{key}") not in paths
        }
    if kind == "list":
        return [
            remove(item, paths, where.item(), (*path, where.element(item))) if where.kind == "list" else item
            for item in value
            if (*path, where.element(item)) not in paths
        ]
    return value
