"""pydantic's JSON schema -> the structural schema that a CustomResourceDefinition takes.

Kubernetes: "Specifying a structural schema". References are put in place, unions with null become optional fields,
numeric exclusive bounds become OpenAPI 3.0's flags, free-form objects keep their unknown fields.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, NoDefault
from pydantic_core import core_schema

Schema = dict[str, Any]

_DROPPED = {"title", "propertyNames", "discriminator"}
_TYPES = {"integer": "int64", "number": "double"}


class SchemaError(ValueError):
    """A model cannot be expressed as a bounded structural schema; the message names the field."""


class _WithFactories(GenerateJsonSchema):
    """Default factories too: {} for a part of which everything has a default, so that the API server fills it in."""

    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        if "default_factory" not in schema:
            return super().get_default_value(schema)
        factory: Any = schema["default_factory"]
        made = factory()
        return {} if isinstance(made, BaseModel) else NoDefault


def structural_schema(model: type[BaseModel], *, bounded: bool = True, defaults: bool = True) -> Schema:
    """The structural schema of a model.

    With `bounded`, every string, list and map must have an upper bound (CEL's cost is estimated from them), and
    SchemaError names the one that has none. Without `defaults`, none are written (a status has none).
    """
    raw = model.model_json_schema(by_alias=True, mode="validation", schema_generator=_WithFactories)
    return _Flattener(raw.get("$defs", {}), bounded=bounded, defaults=defaults).convert(raw, model.__name__)


class _Flattener:
    def __init__(self, definitions: Mapping[str, Any], *, bounded: bool, defaults: bool) -> None:
        self.definitions = definitions
        self.bounded = bounded
        self.defaults = defaults

    def convert(self, node: Mapping[str, Any], path: str) -> Schema:
        """One node and all below it."""
        merged = self._merge(node, path)
        schema = {k: v for k, v in merged.items() if k not in _DROPPED and not k.startswith("$")}
        if "const" in schema:
            schema["enum"] = [schema.pop("const")]
        if schema.get("default", ...) is None or not self.defaults:
            schema.pop("default", None)
        if schema.get("type") == "object":
            self._object(schema, path)
        elif schema.get("type") == "array":
            schema["items"] = self.convert(schema["items"], f"{path}[]")
            schema.setdefault("x-kubernetes-list-type", "atomic")
        elif schema.get("type") in _TYPES:
            _numeric(schema)
        self._check(schema, path)
        return dict(sorted(schema.items(), key=_order))

    def _merge(self, node: Mapping[str, Any], path: str) -> Schema:
        """A node with references, single-member allOf and unions with null resolved; the node's own keys win."""
        own = dict(node)
        if "$ref" in own:
            name = str(own.pop("$ref")).rsplit("/", 1)[-1]
            return {**self._merge(self.definitions[name], path), **own}
        if "x-kubernetes-int-or-string" in own:
            return own
        for key in ("anyOf", "oneOf", "allOf"):
            members = [m for m in own.pop(key, []) if m.get("type") != "null"]
            if len(members) > 1:
                raise SchemaError(f"{path}: a union of {len(members)} types is not structural")
            if members:
                own = {**self._merge(members[0], path), **own}
        return own

    def _object(self, schema: Schema, path: str) -> None:
        additional = schema.pop("additionalProperties", None)
        if "properties" in schema:
            schema["properties"] = {k: self.convert(v, f"{path}.{k}") for k, v in schema["properties"].items()}
            if additional is True:
                schema["x-kubernetes-preserve-unknown-fields"] = True
        elif isinstance(additional, dict) and additional:
            schema["additionalProperties"] = self.convert(additional, f"{path}{{}}")
        elif not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema["x-kubernetes-preserve-unknown-fields"] = True
        if "minLength" in schema or "maxLength" in schema:
            raise SchemaError(f"{path}: string bounds on an object")

    def _check(self, schema: Schema, path: str) -> None:
        if not self.bounded:
            return
        kind = schema.get("type")
        if kind == "string" and "maxLength" not in schema and "enum" not in schema:
            raise SchemaError(f"{path}: a string without maxLength")
        if kind == "array" and "maxItems" not in schema:
            raise SchemaError(f"{path}: a list without maxItems")
        if "additionalProperties" in schema and "maxProperties" not in schema:
            raise SchemaError(f"{path}: a map without maxProperties")


def _numeric(schema: Schema) -> None:
    schema.setdefault("format", _TYPES[schema["type"]])
    for key, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if key in schema:
            schema[bound] = schema[key]
            schema[key] = True


_ORDER = ("description", "type", "format", "enum", "default")


def _order(item: tuple[str, Any]) -> tuple[int, str]:
    key = item[0]
    return (_ORDER.index(key) if key in _ORDER else len(_ORDER), key)
