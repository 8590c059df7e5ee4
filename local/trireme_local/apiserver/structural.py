"""Structural schemas of custom resources: pruning, defaulting and validation."""

from __future__ import annotations

import base64
import copy
import datetime
import ipaddress
import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
from jsonschema.exceptions import ValidationError

from . import errors
from .definitions import Schema
from .errors import Cause

_DURATION = re.compile(r"^[+-]?((\d+(\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h))+$|^0$")
_DATE_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt]([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_formats = jsonschema.FormatChecker(formats=())


def _matching(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: not isinstance(value, str) or bool(pattern.match(value))


def _parsing(parse: Callable[[str], object]) -> Callable[[Any], bool]:
    return lambda value: not isinstance(value, str) or parse(value) is not None


def _is_date(text: str) -> bool:
    return bool(_DATE.fullmatch(text)) and datetime.date.fromisoformat(text) is not None


def _is_date_time(text: str) -> bool:
    match = _DATE_TIME.fullmatch(text)
    return match is not None and _is_date(match[1])


def _integer_of(bits: int) -> Callable[[Any], bool]:
    limit = 2 ** (bits - 1)
    return lambda value: isinstance(value, bool) or not isinstance(value, int) or -limit <= value < limit


for _name, _check in {
    "date-time": lambda value: not isinstance(value, str) or _is_date_time(value),
    "date": lambda value: not isinstance(value, str) or _is_date(value),
    "duration": _matching(_DURATION),
    "byte": _parsing(lambda text: base64.b64decode(text, validate=True)),
    "ipv4": _parsing(ipaddress.IPv4Address),
    "ipv6": _parsing(ipaddress.IPv6Address),
    "cidr": _parsing(lambda text: ipaddress.ip_network(text, strict=False)),
    "uuid": _parsing(uuid.UUID),
    "int32": _integer_of(32),
    "int64": _integer_of(64),
}.items():
    _formats.checks(_name, raises=ValueError)(_check)


def for_jsonschema(schema: Schema) -> Schema:
    """The same schema in plain JSON Schema (draft 4): nullable and int-or-string spelled out."""
    result: Schema = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties"):
            result[key] = {name: for_jsonschema(sub) for name, sub in value.items()}
        elif key in ("items", "not", "additionalProperties") and isinstance(value, dict):
            result[key] = for_jsonschema(value)
        elif key in ("allOf", "anyOf", "oneOf"):
            result[key] = [for_jsonschema(sub) for sub in value]
        elif key not in ("default", "description", "example", "nullable") and not key.startswith("x-"):
            result[key] = value
    if schema.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
    if schema.get("nullable") and "type" in result:
        kinds = result["type"] if isinstance(result["type"], list) else [result["type"]]
        result["type"] = [*kinds, "null"]
        if "enum" in result and None not in result["enum"]:
            result["enum"] = [*result["enum"], None]
    return result


def validator(schema: Schema) -> Any:
    """A compiled validator of a structural schema, for `validate`."""
    return jsonschema.Draft4Validator(for_jsonschema(schema), format_checker=_formats)


def _path(parts: Iterator[Any] | list[Any], root: str) -> str:
    text = root
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _type_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object" if isinstance(value, dict) else "null"


def _cause(error: ValidationError, root: str) -> Iterator[Cause]:
    path = _path(list(error.absolute_path), root)
    keyword, limit, value = error.validator, error.validator_value, error.instance
    body = f"{path} in body"
    if keyword == "required":
        missing = next((name for name in limit if f"'{name}' is a required" in error.message), None)
        yield errors.required(_path([missing], path))
    elif keyword == "type":
        kinds = [limit] if isinstance(limit, str) else [kind for kind in limit if kind != "null"]
        got = _type_of(value)
        text = f'Invalid value: "{got}": {body} must be of type {",".join(kinds)}: "{got}"'
        yield Cause("FieldValueTypeInvalid", path, text)
    elif keyword == "enum":
        yield errors.unsupported_value(path, value, [item for item in limit if item is not None])
    elif keyword == "maxLength":
        yield errors.too_long(path, limit)
    elif keyword in ("maxItems", "maxProperties"):
        yield errors.too_many(path, len(value), limit)
    elif keyword in ("allOf", "anyOf", "oneOf", "not"):
        text = {
            "oneOf": "must validate one and only one schema (oneOf)",
            "anyOf": "must validate at least one schema (anyOf)",
            "allOf": "must validate all the schemas (allOf)",
            "not": "must not validate the schema (not)",
        }[str(keyword)]
        yield errors.invalid_value(path, value, f'"{path}" {text}')
    else:
        yield errors.invalid_value(path, value, f"{body} {_phrase(str(keyword), limit, error)}")


def _phrase(keyword: str, limit: Any, error: ValidationError) -> str:
    schema = error.schema if isinstance(error.schema, dict) else {}
    if keyword == "minimum":
        return f"should be greater than {'' if schema.get('exclusiveMinimum') else 'or equal to '}{limit}"
    if keyword == "maximum":
        return f"should be less than {'' if schema.get('exclusiveMaximum') else 'or equal to '}{limit}"
    phrases = {
        "pattern": f"should match '{limit}'",
        "minLength": f"should be at least {limit} chars long",
        "minItems": f"should have at least {limit} items",
        "minProperties": f"should have at least {limit} properties",
        "multipleOf": f"should be a multiple of {limit}",
        "format": f"must be of type {limit}: {errors.quote(error.instance)}",
    }
    return phrases.get(keyword, str(error.message))


def validate(compiled: Any, value: Any, root: str = "") -> list[Cause]:
    """All violations of a schema, ordered by field."""
    found: list[Cause] = []
    for error in compiled.iter_errors(value):
        found.extend(_cause(error, root))
    return sorted(found, key=lambda cause: cause.field)


def validate_list_types(schema: Schema, value: Any, path: str) -> list[Cause]:
    """Uniqueness of lists of type set and map, which JSON Schema cannot say."""
    found: list[Cause] = []
    if isinstance(value, dict):
        for key, item in value.items():
            sub = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
            if isinstance(sub, dict):
                found += validate_list_types(sub, item, _path([key], path))
    elif isinstance(value, list) and isinstance(items := schema.get("items"), dict):
        keys = schema.get("x-kubernetes-list-map-keys")
        if schema.get("x-kubernetes-list-type") in ("set", "map"):
            seen: list[Any] = []
            for index, item in enumerate(value):
                mark = {key: item.get(key) for key in keys} if keys and isinstance(item, dict) else item
                if mark in seen:
                    found.append(errors.duplicate_value(f"{path}[{index}]", mark))
                seen.append(mark)
        for index, item in enumerate(value):
            found += validate_list_types(items, item, f"{path}[{index}]")
    return found


def prune(schema: Schema, value: Any, path: str, unknown: list[str]) -> Any:
    """A copy without the fields that the schema does not specify; their paths go to `unknown`."""
    if isinstance(value, list):
        items = schema.get("items")
        if not isinstance(items, dict):
            return value
        return [prune(items, item, f"{path}[{index}]", unknown) for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties", {})
    extra = schema.get("additionalProperties")
    preserve = schema.get("x-kubernetes-preserve-unknown-fields")
    embedded = schema.get("x-kubernetes-embedded-resource")
    result = {}
    for key, item in value.items():
        below = _path([key], path)
        if key in properties:
            result[key] = prune(properties[key], item, below, unknown)
        elif isinstance(extra, dict):
            result[key] = prune(extra, item, below, unknown)
        elif preserve or extra is True or (embedded and key in ("apiVersion", "kind", "metadata")):
            result[key] = item
        else:
            unknown.append(below)
    return result


def apply_defaults(schema: Schema, value: Any) -> None:
    """Fill in defaults in place; a null where null is not allowed and a default exists counts as absent."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        for key, sub in properties.items():
            if "default" in sub:
                if key in value and value[key] is None and not sub.get("nullable"):
                    del value[key]
                if key not in value:
                    value[key] = copy.deepcopy(sub["default"])
        extra = schema.get("additionalProperties")
        for key, item in value.items():
            if key in properties:
                apply_defaults(properties[key], item)
            elif isinstance(extra, dict):
                apply_defaults(extra, item)
    elif isinstance(value, list) and isinstance(items := schema.get("items"), dict):
        for item in value:
            apply_defaults(items, item)
