"""What an API server does with a custom resource: defaults, schema validation, CEL rules. Small, for these tests."""

import copy
import functools
from collections.abc import Iterator
from typing import Any

import cel
import jsonschema

Schema = dict[str, Any]


def with_defaults(schema: Schema, value: Any) -> Any:
    """A copy of the value with defaults filled in."""
    value = copy.deepcopy(value)
    _fill(schema, value)
    return value


def _fill(schema: Schema, value: Any) -> None:
    if isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if name not in value and "default" in child:
                value[name] = copy.deepcopy(child["default"])
            if name in value:
                _fill(child, value[name])
        for name, item in value.items():
            if isinstance(schema.get("additionalProperties"), dict):
                _fill(schema["additionalProperties"], item)
            assert name is not None
    elif isinstance(value, list) and "items" in schema:
        for item in value:
            _fill(schema["items"], item)


def refusals(schema: Schema, value: Any, old: Any = None) -> list[str]:
    """Messages for which the object is refused at apply, unknown fields included (kubectl validates strictly).

    An update of the spec keeps the stored status.
    """
    kept = {"status": old["status"]} if old and "status" in old else {}
    filled = with_defaults(schema, {**value, **kept})
    validator = jsonschema.Draft4Validator(_draft4(schema))
    errors = [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in validator.iter_errors(filled)]
    return errors or list(rule_refusals(schema, filled, None if old is None else with_defaults(schema, old), ""))


def default_refusals(schema: Schema, path: str = "") -> Iterator[str]:
    """Messages for which a CRD is refused because of a default in its schema.

    An API server checks each default by itself, as it is written: the defaults of fields below it are not filled in.
    """
    default = schema.get("default")
    if isinstance(default, dict):
        validator = jsonschema.Draft4Validator(_draft4(schema))
        yield from (f"{path}: {error.message}" for error in validator.iter_errors(default))
        try:
            yield from rule_refusals(schema, default, default, path)
        except (KeyError, RuntimeError) as error:
            yield f"{path}: {error!r} in a rule"
    for name, child in schema.get("properties", {}).items():
        yield from default_refusals(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from default_refusals(schema[key], f"{path}.{key}")


def _draft4(schema: Schema) -> Schema:
    node = {k: v for k, v in schema.items() if not k.startswith("x-") and k != "format"}
    if schema.get("x-kubernetes-int-or-string"):
        node["type"] = ["integer", "string"]
    if "properties" in node:
        node["properties"] = {k: _draft4(v) for k, v in node["properties"].items()}
        # metadata is Kubernetes' own, whatever the CRD says of it
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or not node["properties"]
        node["additionalProperties"] = bool(open_ended)
    elif isinstance(node.get("additionalProperties"), dict):
        node["additionalProperties"] = _draft4(node["additionalProperties"])
    if "items" in node:
        node["items"] = _draft4(node["items"])
    return node


_compiled = functools.cache(cel.compile)


def rule_refusals(schema: Schema, value: Any, old: Any, path: str) -> Iterator[str]:
    """Messages of the rules that a value with its defaults breaks, old being what it replaces."""
    rules = schema.get("x-kubernetes-validations", [])
    variables = cel.Context(variables={"self": value, "oldSelf": old}) if rules else None
    for rule in rules:
        if old is None and "oldSelf" in rule["rule"]:
            continue
        if _compiled(rule["rule"]).execute(variables) is not True:
            yield f"{path}: {rule['message']}"
    if isinstance(value, dict):
        for name, child in schema.get("properties", {}).items():
            if name in value:
                before = old.get(name) if isinstance(old, dict) else None
                yield from rule_refusals(child, value[name], before, f"{path}.{name}")
    elif isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from rule_refusals(schema["items"], item, None, f"{path}[{index}]")
