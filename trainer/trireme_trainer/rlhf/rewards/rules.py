"""Rewards that are rules about a completion: pure functions of its text or its number of tokens."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable

Rule = Callable[[str], float]


class RuleUnusable(ValueError):
    """A pattern or schema that is none."""


def regex(pattern: str, match: str) -> Rule:
    """1 where the pattern matches anywhere (`search`) or from end to end (`full`). Raises RuleUnusable."""
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise RuleUnusable(f"{pattern!r} is no pattern: {error}") from error
    look = compiled.fullmatch if match == "full" else compiled.search
    return lambda text: float(look(text) is not None)


def json_schema(schema: Mapping[str, Any]) -> Rule:
    """1 where the text is JSON (RFC 8259) that the schema accepts. Raises RuleUnusable."""
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise RuleUnusable(f"no JSON Schema: {error.message}") from error
    validator = Draft202012Validator(schema, registry=Registry())  # nothing is fetched

    def rule(text: str) -> float:
        try:
            value = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return 0.0
        try:
            return float(validator.is_valid(value))
        except RecursionError:
            return 0.0
        except Unresolvable as error:
            raise RuleUnusable(f"the schema refers to something outside it: {error}") from error

    return rule


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def python_syntax(text: str) -> float:
    """1 where the text is a Python module that compiles; nothing is run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(text, "<completion>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
            return 0.0
    return 1.0


def length_target(target: int) -> Callable[[int], float]:
    """1 at `target` tokens, less by the relative distance, 0 from twice the target on."""
    return lambda tokens: max(0.0, 1.0 - abs(tokens - target) / target)


def length_range(least: int | None, most: int | None) -> Callable[[int], float]:
    """1 from `least` to `most` tokens, 0 elsewhere."""
    return lambda tokens: float((least or 0) <= tokens <= (most if most is not None else tokens))


def rule_named(kind: str, parameters: Mapping[str, Any]) -> Rule:
    """The rule about texts of one reward type, from its part of the spec. Raises RuleUnusable."""
    match kind:
        case "regex":
            return regex(parameters["pattern"], parameters["match"])
        case "jsonSchema":
            return json_schema(parameters["schema"])
    return python_syntax
