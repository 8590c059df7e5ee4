"""Server-side Tables: what `kubectl get` prints."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from .resource import Column, Resource
from .store import Obj

NAME_TEXT = (
    "Name must be unique within a namespace. Is required when creating resources, although some resources may allow "
    "a client to request the generation of an appropriate name automatically."
)
AGE_TEXT = "CreationTimestamp is a timestamp representing the server time when this object was created."
NAME = Column("Name", format="name", description=NAME_TEXT)
AGE = Column("Age", description=AGE_TEXT)


def parse_time(text: str) -> datetime:
    """A metav1.Time or MicroTime as an aware datetime."""
    return datetime.fromisoformat(text.upper().replace("Z", "+00:00"))


def human_duration(seconds: float) -> str:
    """A duration as kubectl shows ages: at most two units, coarser with age."""
    whole = int(seconds)
    if whole < -1:
        return "<invalid>"
    if whole < 0:
        return "0s"
    if whole < 60 * 2:
        return f"{whole}s"
    minutes = whole // 60
    if minutes < 10:
        return f"{minutes}m{whole % 60}s" if whole % 60 else f"{minutes}m"
    if minutes < 60 * 3:
        return f"{minutes}m"
    hours = minutes // 60
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    days = hours // 24
    if hours < 24 * 8:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    if hours < 24 * 365 * 2:
        return f"{days}d"
    years = hours // 24 // 365
    if hours < 24 * 365 * 8:
        rest = hours // 24 % 365
        return f"{years}y{rest}d" if rest else f"{years}y"
    return f"{years}y"


def age(timestamp: str | None) -> str:
    """Time since a timestamp, `<unknown>` without one."""
    if not timestamp:
        return "<unknown>"
    return human_duration((datetime.now(UTC) - parse_time(timestamp)).total_seconds())


def object_age(obj: Obj) -> str:
    """Age of an object."""
    return age(obj["metadata"].get("creationTimestamp"))


_STEP = re.compile(
    r"\.(?P<name>(?:\\.|[^.\[\]\\])+)|\[(?P<quote>['\"])(?P<key>.*?)(?P=quote)\]|\[(?P<index>-?\d+|\*)\]"
    r"|\[\?\(\s*@\.(?P<field>[\w.]+)\s*==\s*(?P<fq>['\"])(?P<value>.*?)(?P=fq)\s*\)\]"
)


def parse_json_path(path: str) -> list[re.Match[str]]:
    """The steps of a simple JSONPath. Raises ValueError for syntax outside the supported subset."""
    steps, position = [], 0
    while position < len(path):
        match = _STEP.match(path, position)
        if not match:
            raise ValueError(f"unsupported JSONPath {path!r} at {path[position:]!r}")
        steps.append(match)
        position = match.end()
    return steps


def json_path(obj: Any, path: str) -> list[Any]:
    """Values that a simple JSONPath finds: fields, quoted fields, indexes and equality filters."""
    values = [obj]
    for step in parse_json_path(path):
        found: list[Any] = []
        for value in values:
            if step["index"]:
                if isinstance(value, list):
                    if step["index"] == "*":
                        found += value
                    elif -len(value) <= int(step["index"]) < len(value):
                        found.append(value[int(step["index"])])
            elif step["field"]:
                if isinstance(value, list):
                    found += [item for item in value if step["value"] in map(str, json_path(item, "." + step["field"]))]
            else:
                name = step["key"] if step["quote"] else re.sub(r"\\(.)", r"\1", step["name"])
                if isinstance(value, dict) and name in value:
                    found.append(value[name])
        values = found
    return values


def custom_cell(obj: Obj, column: Column) -> Any:
    """The cell of an additionalPrinterColumn; None when the value is absent or of another type."""
    found = json_path(obj, column.path)
    if not found or found[0] is None:
        return None
    value = found[0]
    if column.type == "date":
        return age(value) if isinstance(value, str) else "<invalid>"
    if column.type == "integer":
        return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if column.type == "number":
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if column.type == "boolean":
        return value if isinstance(value, bool) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, list)):
        return _go_format(value)
    return str(value)


def _go_format(value: Any) -> str:
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{_go_format(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, list):
        return "[" + " ".join(map(_go_format, value)) + "]"
    return str(value)


def table(
    resource: Resource, objects: Iterable[Obj], list_meta: Obj, include: str, with_columns: bool, api_version: str
) -> Obj:
    """A meta.k8s.io Table; `include` is None, Metadata or Object as in the includeObject parameter."""
    rows = []
    for obj in objects:
        row: Obj = {"cells": resource.strategy.cells(obj)}
        if include == "Object":
            row["object"] = obj
        elif include != "None":
            row["object"] = partial_metadata(obj, api_version)
        rows.append(row)
    columns = [
        {
            "name": column.name,
            "type": column.type,
            "format": column.format,
            "description": column.description,
            "priority": column.priority,
        }
        for column in resource.strategy.columns
    ]
    body: Obj = {"kind": "Table", "apiVersion": api_version, "metadata": list_meta, "columnDefinitions": columns}
    if not with_columns:
        body["columnDefinitions"] = []
    body["rows"] = rows
    return body


def partial_metadata(obj: Obj, api_version: str) -> Obj:
    """The PartialObjectMetadata of an object."""
    return {"kind": "PartialObjectMetadata", "apiVersion": api_version, "metadata": obj["metadata"]}
