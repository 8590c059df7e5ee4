"""The schemas of the built-in kinds, from the OpenAPI definitions that kubernetes-validate bundles."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

KUBERNETES_VERSION = "v1.32.0"
Schema = dict[str, Any]
META = "io.k8s.apimachinery.pkg.apis.meta.v1"
OBJECT_META = f"{META}.ObjectMeta"
_INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
# Free-form JSON: the bundled definitions call these objects (or leave them untyped).
_FREE_FORM = (
    f"{META}.FieldsV1",
    "io.k8s.apimachinery.pkg.runtime.RawExtension",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray",
)


def _clean(schema: Any, prefix: str) -> Any:
    """Undo kubernetes-validate's additions (null types, fixed apiVersion and kind) and point references at `prefix`."""
    if isinstance(schema, list):
        return [_clean(item, prefix) for item in schema]
    if not isinstance(schema, dict):
        return schema
    cleaned: Schema = {}
    for key, value in schema.items():
        if key == "type" and isinstance(value, list):
            cleaned[key] = value[0]
        elif key == "$ref":
            cleaned[key] = prefix + str(value).rsplit("/", 1)[-1]
        elif key == "properties":
            cleaned[key] = {name: _clean(sub, prefix) for name, sub in value.items()}
            for name in ("apiVersion", "kind"):
                if isinstance(value.get(name), dict) and "enum" in value[name]:
                    cleaned[key][name].pop("enum", None)
        else:
            cleaned[key] = _clean(value, prefix)
    return cleaned


@cache
def load(prefix: str) -> dict[str, Schema]:
    """All built-in definitions by name, with `$ref`s that start with `prefix`."""
    path = resources.files("kubernetes_validate").joinpath(
        f"kubernetes-json-schema/{KUBERNETES_VERSION}-local/_definitions.json"
    )
    raw = json.loads(path.read_bytes())["$defs"]
    definitions = {name: _clean(schema, prefix) for name, schema in raw.items()}
    text = definitions[_QUANTITY].get("description")
    definitions[_INT_OR_STRING] = {
        "description": "IntOrString is a type that can hold an int32 or a string.",
        "type": "string",
        "format": "int-or-string",
    }
    definitions[_QUANTITY] = {"type": "string", "format": "quantity"} | ({"description": text} if text else {})
    for name in _FREE_FORM:
        if name in definitions:
            definitions[name] = {key: value for key, value in definitions[name].items() if key == "description"} | {
                "x-kubernetes-preserve-unknown-fields": True
            }
    return definitions


@cache
def by_kind() -> dict[tuple[str, str, str], str]:
    """Definition name by (group, version, kind)."""
    found = {}
    for name, schema in load("#/definitions/").items():
        for gvk in schema.get("x-kubernetes-group-version-kind", ()):
            key = (gvk["group"], gvk["version"], gvk["kind"])
            # DeleteOptions and the like carry every group's kind; the one with the most specific name wins.
            if key not in found or gvk["version"] in name:
                found[key] = name
    return found


def resolve(schema: Schema) -> Schema:
    """Follow a reference into the built-in definitions, if the schema is one."""
    while "$ref" in schema:
        schema = load("#/definitions/")[schema["$ref"].rsplit("/", 1)[-1]]
    return schema


def named(name: str) -> Schema:
    """One definition by its full name. Raises KeyError when unknown."""
    return load("#/definitions/")[name]
