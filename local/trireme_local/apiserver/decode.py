"""Decoding of built-in objects: types, unknown fields, nulls and empty collections, as Go's decoder treats them."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from typing import Any

from . import definitions
from .definitions import Schema

_QUANTITY = re.compile(r"^[+-]?(\d+|\d+\.\d*|\.\d+)(([KMGTPE]i)|[numkMGTPE]|[eE][+-]?\d+)?$")
_GO_TYPES = {"integer": "int64", "number": "float64", "boolean": "bool", "string": "string"}
_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$")


class DecodeError(Exception):
    """A value has the wrong JSON type for its field."""


def _type_name(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object" if isinstance(value, dict) else "null"


def _mismatch(value: Any, schema: Schema, path: str) -> DecodeError:
    kind: str = schema.get("type", "object")
    expected = _GO_TYPES.get(kind, kind)
    return DecodeError(f"json: cannot unmarshal {_type_name(value)} into Go struct field {path} of type {expected}")


class Decoder:
    """Walks one object; `unknown` collects the paths of fields that the schema does not have."""

    def __init__(self) -> None:
        self.unknown: list[str] = []

    def decode(self, value: Any, schema: Schema, path: str = "") -> Any:
        """The value without nulls, unknown fields and empty optional collections. Raises DecodeError."""
        micro = schema.get("$ref", "").endswith(".MicroTime")
        schema = definitions.resolve(schema)
        if schema.get("format") == "date-time":
            return _time(value, schema, path, micro)
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            return value
        if schema.get("type") in ("object", None):
            return self._object(value, schema, path)
        if schema["type"] == "array":
            if not isinstance(value, list):
                raise _mismatch(value, schema, path)
            items = schema.get("items", {})
            return [self.decode(item, items, f"{path}[{index}]") for index, item in enumerate(value)]
        return _scalar(value, schema, path)

    def _object(self, value: Any, schema: Schema, path: str) -> Any:
        if not isinstance(value, dict):
            raise _mismatch(value, schema, path)
        properties = schema.get("properties")
        if properties is None:
            extra = schema.get("additionalProperties")
            if not isinstance(extra, dict):
                return value
            return {key: self.decode(item, extra, f"{path}.{key}" if path else key) for key, item in value.items()}
        required = schema.get("required", ())
        result = {}
        for key, item in value.items():
            below = f"{path}.{key}" if path else key
            if key not in properties:
                self.unknown.append(below)
                continue
            if item is None:
                continue
            decoded = self.decode(item, properties[key], below)
            if decoded in ([], {}) and key not in required and _is_collection(properties[key]):
                continue  # Go's omitempty
            result[key] = decoded
        return result


def _is_collection(schema: Schema) -> bool:
    schema = definitions.resolve(schema)
    return schema.get("type") == "array" or ("additionalProperties" in schema and "properties" not in schema)


def _time(value: Any, schema: Schema, path: str, micro: bool) -> str:
    """A metav1.Time in whole seconds of UTC; a MicroTime, which must come with six decimals, keeps them."""
    if not isinstance(value, str):
        raise _mismatch(value, schema, path)
    layout = "2006-01-02T15:04:05.000000Z07:00" if micro else "2006-01-02T15:04:05Z07:00"
    match = _TIME.match(value)
    if match is None or (micro and len(match[1] or "") != len(".000000")):
        raise DecodeError(f'parsing time "{value}" as "{layout}": cannot parse {path}')
    whole = value if match[1] is None else value.replace(match[1], match[1][:7], 1)
    try:
        moment = datetime.fromisoformat(whole.replace("Z", "+00:00")).astimezone(UTC)
    except ValueError as error:
        raise DecodeError(f'parsing time "{value}": {error}') from None
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")


def _scalar(value: Any, schema: Schema, path: str) -> Any:
    kind, form = schema["type"], schema.get("format")
    if form == "int-or-string":
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise _mismatch(value, schema, path)
        return value
    if form == "quantity":
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise _mismatch(value, schema, path)
        text = value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
        if not _QUANTITY.match(text):
            raise DecodeError(
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
            )
        return text
    if kind == "string":
        if not isinstance(value, str):
            raise _mismatch(value, schema, path)
        if form == "byte":
            try:
                base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                raise DecodeError(f"illegal base64 data in field {path}") from None
        return value
    if kind == "boolean":
        if not isinstance(value, bool):
            raise _mismatch(value, schema, path)
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _mismatch(value, schema, path)
    if kind == "integer":
        if isinstance(value, float) and not value.is_integer():
            raise _mismatch(value, schema, path)
        bits = 32 if form == "int32" else 64
        if not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
            raise DecodeError(f"json: cannot unmarshal number {value} into Go struct field {path} of type int{bits}")
        return int(value)
    return value
