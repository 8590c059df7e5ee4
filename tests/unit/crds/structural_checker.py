"""Rules of apiextensions.k8s.io/v1 for a CustomResourceDefinition's schema, as an API server checks them.

Kubernetes documentation: "Extend the Kubernetes API with CustomResourceDefinitions", sections "Specifying a structural
schema", "Defaulting", "Validation rules", "Merge strategy".
"""

import re
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

FORBIDDEN = {
    "$ref",
    "$schema",
    "definitions",
    "dependencies",
    "deprecated",
    "discriminator",
    "id",
    "patternProperties",
    "propertyNames",
    "const",
    "readOnly",
    "writeOnly",
    "xml",
    "prefixItems",
    "anyOf",
    "oneOf",
    "allOf",
    "not",
}
ALLOWED = {
    "description",
    "type",
    "format",
    "enum",
    "default",
    "nullable",
    "required",
    "properties",
    "additionalProperties",
    "items",
    "pattern",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-validations",
}
INT_OR_STRING = [{"type": "integer"}, {"type": "string"}]
"""The one union that a structural schema may have."""
SCALARS = {"string", "integer", "number", "boolean"}


def walk(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every node with its path, the root's is ''."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield from walk(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from walk(schema["additionalProperties"], f"{path}{{}}")


def problems(root: Schema) -> list[str]:
    """What an API server would refuse, each as 'path: problem'."""
    found = [f"{path}: {text}" for path, node in walk(root) for text in _node_problems(path, node)]
    if root.get("type") != "object":
        found.append("root: must be of type object")
    for key in root["properties"]["metadata"]:
        if key not in {"type", "description", "properties"}:
            found.append(f".metadata: {key} is not allowed")
    return found


def _node_problems(path: str, node: Schema) -> Iterator[str]:
    for key in node:
        if key == "anyOf" and node.get("x-kubernetes-int-or-string") and node[key] == INT_OR_STRING:
            continue
        if key not in ALLOWED:
            yield f"{key} is forbidden in a structural schema" if key in FORBIDDEN else f"unknown key {key}"
    yield from _type_problems(node)
    yield from _object_problems(path, node)
    yield from _list_problems(node)
    yield from _value_problems(node)
    yield from _rule_problems(path, node)


def _type_problems(node: Schema) -> Iterator[str]:
    if node.get("x-kubernetes-int-or-string"):
        if "type" in node:
            yield "int-or-string must have no type"
    elif node.get("type") not in SCALARS | {"object", "array"}:
        yield f"type is {node.get('type')!r}"
    if node.get("x-kubernetes-preserve-unknown-fields") and node.get("type") != "object":
        yield "only objects keep unknown fields"
    for key in ("exclusiveMinimum", "exclusiveMaximum"):
        if key in node and not isinstance(node[key], bool):
            yield f"{key} must be a boolean"


def _object_problems(path: str, node: Schema) -> Iterator[str]:
    if "properties" in node and "additionalProperties" in node:
        yield "properties and additionalProperties exclude one another"
    if "additionalProperties" in node and not isinstance(node["additionalProperties"], dict):
        yield "additionalProperties must be a schema"
    for name in node.get("required", []):
        if name not in node.get("properties", {}):
            yield f"required field {name} is not declared"
        elif "default" in node["properties"][name]:
            yield f"required field {name} has a default"
    if (
        path != ".metadata"
        and node.get("type") == "object"
        and not (
            "properties" in node or "additionalProperties" in node or node.get("x-kubernetes-preserve-unknown-fields")
        )
    ):
        yield "an object with nothing in it"


def _list_problems(node: Schema) -> Iterator[str]:
    if node.get("type") != "array":
        return
    if not isinstance(node.get("items"), dict):
        yield "items must be one schema"
        return
    items, kind = node["items"], node.get("x-kubernetes-list-type")
    if kind not in {"atomic", "set", "map"}:
        yield f"list type is {kind!r}"
    if kind == "set" and items.get("type") not in SCALARS:
        yield "a set holds scalars"
    if (kind == "map") != ("x-kubernetes-list-map-keys" in node):
        yield "map keys belong to list type map"
    for key in node.get("x-kubernetes-list-map-keys", []):
        field = items.get("properties", {}).get(key)
        if field is None or field.get("type") not in SCALARS:
            yield f"map key {key} is not a scalar field of the items"
        elif key not in items.get("required", []) and "default" not in field:
            yield f"map key {key} is neither required nor has a default"
    if items.get("nullable"):
        yield "items must not be nullable"


def _value_problems(node: Schema) -> Iterator[str]:
    values = [str(v) for v in node.get("enum", [])]
    if len(values) != len(set(values)) or node.get("enum") == []:
        yield "enum values must be unique and present"
    pattern = node.get("pattern")
    if pattern is not None:
        re.compile(pattern)
        if re.search(r"\(\?[=!<]|\\[1-9]", pattern):
            yield f"pattern {pattern!r} is not RE2"
    if "default" in node and not node.get("x-kubernetes-int-or-string"):
        expected = {
            "string": str,
            "integer": int,
            "number": (int, float),
            "boolean": bool,
            "object": dict,
            "array": list,
        }
        if not isinstance(node["default"], expected[node["type"]]):
            yield f"default {node['default']!r} is not of type {node['type']}"
        if node["default"] == {} and node.get("required"):
            yield f"default {{}} leaves out required {node['required']}"


def _rule_problems(path: str, node: Schema) -> Iterator[str]:
    for rule in node.get("x-kubernetes-validations", []):
        if set(rule) - {"rule", "message", "messageExpression", "reason", "fieldPath", "optionalOldSelf"}:
            yield f"unknown keys in rule {rule}"
        message = rule.get("message", "")
        if not message or "\n" in message or len(message) > 2048:
            yield f"message of rule {rule['rule']!r} must be one line of at most 2048 characters"
        field = rule.get("fieldPath")
        if field is not None and not _is_field(node, field):
            yield f"fieldPath {field} is not a field"
        if "oldSelf" in rule["rule"] and ("[]" in path or "{}" in path):
            yield "a transition rule below a list needs list type map"


def _is_field(node: Schema, path: str) -> bool:
    """Whether a relative path such as .spec.model leads to a property."""
    first, *names = path.split(".")
    for name in names:
        node = node.get("properties", {}).get(name)
        if node is None:
            return False
    return first == "" and bool(names)
