"""CEL rules (x-kubernetes-validations) of custom resources: checked with the CRD, evaluated on every write."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import cel
from cel.stdlib import add_stdlib_to_context

from . import errors
from .definitions import Schema
from .errors import Cause
from .store import Obj

_RESERVED = frozenset(
    {"true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import"}
    | {"let", "loop", "package", "namespace", "return", "var", "void", "while"}
)
_REASONS = ("FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired", "FieldValueDuplicate")
_LITERAL = re.compile(r"""r?("(\\.|[^"\\])*"|'(\\.|[^'\\])*')""")
_CHAIN = re.compile(r"(?<![\w.])(self|oldSelf)((?:\.\w+)+)(\s*\()?")
# What the library itself defines besides operators, and what `add_stdlib_to_context` and `_extend` add.
_NATIVE = frozenset(
    {"size", "contains", "startsWith", "endsWith", "matches", "has", "all", "exists", "exists_one", "map", "filter"}
    | {"int", "uint", "double", "string", "bytes", "bool", "timestamp", "duration", "type", "dyn"}
    | {"getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getHours"}
    | {"getMinutes", "getSeconds", "getMilliseconds", "or", "hasValue", "value", "orValue"}
    | {"optional.of", "optional.none", "optional.ofNonZeroValue"}
)
_ABSENT: Any = object()


def _find(text: str, pattern: str) -> str:
    match = re.search(pattern, text)
    return match[0] if match else ""


def _find_all(text: str, pattern: str, limit: int = -1) -> list[str]:
    found = [match[0] for match in re.finditer(pattern, text)]
    return found if limit < 0 else found[:limit]


def _is_sorted(values: list[Any]) -> bool:
    return all(first <= second for first, second in itertools.pairwise(values))


def _context() -> cel.Context:
    context = cel.Context()
    add_stdlib_to_context(context)
    for name, function in (("find", _find), ("findAll", _find_all), ("isSorted", _is_sorted)):
        context.add_function(name, function)
    return context


_FUNCTIONS = _NATIVE | frozenset(_context().functions)


def escape(name: str) -> str | None:
    """A property name as CEL knows it; None where CEL cannot name it."""
    if name in _RESERVED:
        return f"__{name}__"
    text = (
        name.replace("__", "__underscores__").replace(".", "__dot__").replace("-", "__dash__").replace("/", "__slash__")
    )
    return text if re.fullmatch(r"[A-Za-z_]\w*", text) else None


def to_cel(value: Any, schema: Schema) -> Any:
    """A JSON value with the types that its schema gives it in CEL."""
    if isinstance(value, dict):
        properties, extra = schema.get("properties", {}), schema.get("additionalProperties")
        if properties:
            pairs = ((escape(key), to_cel(item, properties[key])) for key, item in value.items() if key in properties)
            known = {key: item for key, item in pairs if key is not None}
            # A rule cannot name what the schema does not know, but sees it when it compares the whole.
            kept = schema.get("x-kubernetes-preserve-unknown-fields")
            return {**{key: item for key, item in value.items() if kept and key not in properties}, **known}
        return {key: to_cel(item, extra if isinstance(extra, dict) else {}) for key, item in value.items()}
    if isinstance(value, list):
        items = schema.get("items", {})
        return [to_cel(item, items) for item in value]
    if schema.get("type") == "number" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        if schema.get("format") in ("date-time", "date"):
            return datetime.fromisoformat(value.upper().replace("Z", "+00:00"))
        if schema.get("format") == "byte":
            return base64.b64decode(value)
        if schema.get("format") == "duration":
            return cel.evaluate("duration(text)", {"text": value})
    return value


def undefined_field(rule: str, schema: Schema) -> str:
    """A field of self that a rule names and the schema lacks, "" when there is none."""
    for match in _CHAIN.finditer(_LITERAL.sub('""', rule)):
        names = match[2][1:].split(".")
        if match[3]:
            names.pop()  # a method call
        node: Schema = schema
        for name in names:
            properties = node.get("properties")
            if not properties or node.get("x-kubernetes-preserve-unknown-fields"):
                break
            known = {escape(key): key for key in properties}
            if name not in known:
                return name
            node = properties[known[name]]
    return ""


def check_rule(rule: str, schema: Schema) -> str:
    """Why a rule cannot be used, "" when it can."""
    try:
        program = cel.compile(rule)
    except ValueError as error:
        return f"compilation failed: {error}"
    unknown = [name for name in program.functions() if re.match(r"\w", name) and not name.startswith("_")]
    unknown = [name for name in unknown if name not in _FUNCTIONS]
    if unknown:
        return f"compilation failed: undeclared reference to '{unknown[0]}' (this API server does not support it)"
    if field := undefined_field(rule, schema):
        return f"compilation failed: undefined field '{field}'"
    return ""


@dataclass(frozen=True)
class _Rule:
    program: cel.Program
    text: str
    message: str
    message_program: cel.Program | None
    reason: str
    field_path: str
    transition: bool
    optional_old: bool


def _compile(rule: Obj) -> _Rule:
    text = rule["rule"].strip()
    expression = rule.get("messageExpression")
    return _Rule(
        cel.compile(text),
        text,
        rule.get("message", ""),
        cel.compile(expression) if expression else None,
        rule.get("reason") or "FieldValueInvalid",
        rule.get("fieldPath", ""),
        "oldSelf" in _LITERAL.sub('""', text),
        bool(rule.get("optionalOldSelf")),
    )


class Rules:
    """All rules of one schema."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._compiled: dict[int, list[_Rule]] = {}
        self._deep: dict[int, bool] = {}
        self._has_rules(schema)

    def _has_rules(self, schema: Schema) -> bool:
        """Compile the rules of a schema; remember which parts have any, so that the rest is never walked."""
        found = bool(schema.get("x-kubernetes-validations"))
        if found:
            self._compiled[id(schema)] = [_compile(rule) for rule in schema["x-kubernetes-validations"]]
        for sub in schema.get("properties", {}).values():
            found |= self._has_rules(sub)
        for key in ("items", "additionalProperties"):
            if isinstance(schema.get(key), dict):
                found |= self._has_rules(schema[key])
        self._deep[id(schema)] = found
        return found

    def evaluate(self, new: Any, old: Any, path: str = "") -> list[Cause]:
        """The violations of an object, old being what it replaces; with a path, of a part of one."""
        if not self._deep[id(self._schema)]:
            return []
        return list(self._walk(self._schema, new, _ABSENT if old is None else old, path, _context()))

    def _walk(self, schema: Schema, new: Any, old: Any, path: str, context: cel.Context) -> Iterator[Cause]:
        if new is None or not self._deep.get(id(schema)):
            return
        yield from self._here(schema, new, old, path, context)
        if isinstance(new, dict):
            properties, extra = schema.get("properties", {}), schema.get("additionalProperties")
            for key, item in new.items():
                sub = properties.get(key, extra)
                if isinstance(sub, dict):
                    before = old.get(key, _ABSENT) if isinstance(old, dict) else _ABSENT
                    below = f"{path}.{key}" if path else key
                    yield from self._walk(
                        sub, item, before, f"{path}[{key}]" if key not in properties else below, context
                    )
        elif isinstance(new, list) and isinstance(items := schema.get("items"), dict):
            for index, item in enumerate(new):
                yield from self._walk(items, item, _counterpart(schema, item, old), f"{path}[{index}]", context)

    def _here(self, schema: Schema, new: Any, old: Any, path: str, context: cel.Context) -> Iterator[Cause]:
        """The rules of one node, which see the same values: large objects are made readable to CEL once."""
        rules = self._compiled.get(id(schema), ())
        if rules:
            context.add_variable("self", _self(new, schema, path))
        missing = old is _ABSENT or old is None
        before = None if missing or not any(r.transition for r in rules) else _self(old, schema, path)
        as_optional: bool | None = None  # how oldSelf stands in the context now; None: not at all
        for rule in rules:
            if rule.transition and missing and not rule.optional_old:
                continue  # a transition rule says nothing about what is new
            if rule.transition and rule.optional_old != as_optional:
                optional = cel.OptionalValue.none() if missing else cel.OptionalValue.of(before)
                context.add_variable("oldSelf", optional if rule.optional_old else before)
                as_optional = rule.optional_old
            yield from self._apply(rule, schema, path, context)

    def _apply(self, rule: _Rule, schema: Schema, path: str, context: cel.Context) -> Iterator[Cause]:
        problem = ""
        try:
            if rule.program.execute(context) is True:
                return
        except KeyError as error:
            problem = f"rule evaluation error: no such key: {error.args[0]}"
        except (RuntimeError, TypeError, ValueError) as error:
            problem = f"rule evaluation error: {error}"
        message = self._message(rule, context) or f"failed rule: {rule.text}"
        if problem:
            message = f"{problem} evaluating rule: {message}"
        yield _cause(rule.reason, path + rule.field_path if path else rule.field_path.lstrip("."), schema, message)

    @staticmethod
    def _message(rule: _Rule, context: cel.Context) -> str:
        if rule.message_program is not None:
            try:
                text = rule.message_program.execute(context)
            except (KeyError, RuntimeError, TypeError, ValueError):
                return rule.message  # as a real server does when the expression itself fails
            if isinstance(text, str) and text.strip():
                return text.strip()
        return rule.message


def _self(value: Any, schema: Schema, path: str) -> Any:
    converted = to_cel(value, schema)
    if path == "" and isinstance(value, dict):
        # The root also shows its type and the two names, and nothing else of metadata.
        meta = value.get("metadata", {})
        converted = {
            **converted,
            "apiVersion": value.get("apiVersion", ""),
            "kind": value.get("kind", ""),
            "metadata": {key: meta[key] for key in ("name", "generateName") if key in meta},
        }
    return converted


def _counterpart(schema: Schema, item: Any, old: Any) -> Any:
    """The old item that an item of a list of type map continues; other lists have none."""
    keys = schema.get("x-kubernetes-list-map-keys")
    if schema.get("x-kubernetes-list-type") != "map" or not keys or not isinstance(old, list):
        return _ABSENT
    mark = [item.get(key) for key in keys]
    return next((before for before in old if [before.get(key) for key in keys] == mark), _ABSENT)


def _cause(reason: str, path: str, schema: Schema, message: str) -> Cause:
    shown = schema.get("type", "object")
    if reason == "FieldValueForbidden":
        return errors.forbidden_value(path, message)
    if reason == "FieldValueRequired":
        return errors.required(path, message)
    if reason == "FieldValueDuplicate":
        return errors.duplicate_value(path, shown)
    return errors.invalid_value(path, shown, message)


def validate_rules(schema: Schema, field: str, correlatable: bool = True) -> list[Cause]:
    """Field errors of all rules in a CRD's schema."""
    found: list[Cause] = []
    for index, rule in enumerate(schema.get("x-kubernetes-validations", ())):
        at = f"{field}.x-kubernetes-validations[{index}]"
        text = rule.get("rule", "")
        if not text.strip():
            found.append(errors.required(f"{at}.rule", "rule is not specified"))
            continue
        whole = {**schema, "properties": {**schema.get("properties", {})}} if schema.get("properties") else schema
        if "metadata" in whole.get("properties", {}) or field.endswith("openAPIV3Schema"):
            whole = {
                **whole,
                "properties": {"apiVersion": {}, "kind": {}, **whole.get("properties", {}), "metadata": {}},
            }
        for key, expression in (("rule", text), ("messageExpression", rule.get("messageExpression", ""))):
            if expression and (problem := check_rule(expression, whole)):
                found.append(errors.invalid_value(f"{at}.{key}", expression, problem))
        if "oldSelf" in _LITERAL.sub('""', text) and not correlatable:
            why = "oldSelf cannot be used on the uncorrelatable portion of the schema"
            found.append(errors.invalid_value(f"{at}.rule", text, why))
        if rule.get("reason") and rule["reason"] not in _REASONS:
            found.append(errors.unsupported_value(f"{at}.reason", rule["reason"], _REASONS))
        if (name := rule.get("fieldPath", "")) and _bad_field_path(name, schema):
            found.append(errors.invalid_value(f"{at}.fieldPath", name, "fieldPath must be a valid path"))
    for name, sub in schema.get("properties", {}).items():
        found += validate_rules(sub, f"{field}.properties[{name}]", correlatable)
    if isinstance(extra := schema.get("additionalProperties"), dict):
        found += validate_rules(extra, f"{field}.additionalProperties", correlatable)
    if isinstance(items := schema.get("items"), dict):
        below = correlatable and schema.get("x-kubernetes-list-type") == "map"
        found += validate_rules(items, f"{field}.items", below)
    return found


def _bad_field_path(path: str, schema: Schema) -> bool:
    node = schema
    for name in re.findall(r"\.(\w+)|\['([^']+)'\]", path):
        properties = node.get("properties", {})
        key = name[0] or name[1]
        if key not in properties:
            return True
        node = properties[key]
    return not path.startswith((".", "["))
