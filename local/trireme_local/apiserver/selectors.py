"""Label and field selectors of list, watch and deletecollection requests."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from . import errors
from .store import Obj

_SET = re.compile(r"^\s*(?P<key>[^\s!=,()]+)\s+(?P<op>in|notin)\s*\((?P<values>[^)]*)\)\s*$")
_EQUAL = re.compile(r"^\s*(?P<key>[^\s!=,()<>]+)\s*(?P<op>==|=|!=)\s*(?P<value>[^\s=!,()]*)\s*$")
_COMPARE = re.compile(r"^\s*(?P<key>[^\s!=,()<>]+)\s*(?P<op>[<>])\s*(?P<value>-?\d+)\s*$")
_EXISTS = re.compile(r"^\s*(?P<negated>!?)\s*(?P<key>[^\s!=,()<>]+)\s*$")


@dataclass(frozen=True)
class Requirement:
    """One term of a label selector."""

    key: str
    operator: str  # in, notin, exists, absent, gt, lt
    values: tuple[str, ...] = ()

    def matches(self, labels: dict[str, str]) -> bool:
        """Whether a label map satisfies this term."""
        present = self.key in labels
        value = labels.get(self.key, "")
        if self.operator == "in":
            return present and value in self.values
        if self.operator == "notin":
            return not present or value not in self.values
        if self.operator == "exists":
            return present
        if self.operator == "absent":
            return not present
        if not present or not re.fullmatch(r"-?\d+", value):
            return False
        bound = int(self.values[0])
        return int(value) > bound if self.operator == "gt" else int(value) < bound


def _split(text: str) -> list[str]:
    """Split at commas outside parentheses."""
    parts, depth, start = [], 0, 0
    for index, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    parts.append(text[start:])
    return parts


def parse_labels(text: str) -> tuple[Requirement, ...]:
    """Parse a label selector. Raises ApiError 400 when it is malformed."""
    if not text.strip():
        return ()
    found = []
    for part in _split(text):
        if match := _SET.match(part):
            values = tuple(value.strip() for value in match["values"].split(","))
            found.append(Requirement(match["key"], match["op"], values))
        elif match := _EQUAL.match(part):
            found.append(Requirement(match["key"], "notin" if match["op"] == "!=" else "in", (match["value"],)))
        elif match := _COMPARE.match(part):
            found.append(Requirement(match["key"], "gt" if match["op"] == ">" else "lt", (match["value"],)))
        elif match := _EXISTS.match(part):
            found.append(Requirement(match["key"], "absent" if match["negated"] else "exists"))
        else:
            raise errors.bad_request(
                f"unable to parse requirement: found '{part.strip()}', expected: a label selector term"
            )
    return tuple(found)


def selector_matches(selector: Obj | None, labels: dict[str, str]) -> bool:
    """Whether a metav1.LabelSelector object matches; None matches nothing, an empty one everything."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    names = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "absent"}
    return all(
        Requirement(term["key"], names[term["operator"]], tuple(term.get("values") or ())).matches(labels)
        for term in selector.get("matchExpressions") or ()
    )


_SHOWN = {
    "In": "{key} in ({values})",
    "NotIn": "{key} notin ({values})",
    "Exists": "{key}",
    "DoesNotExist": "!{key}",
}


def format_selector(selector: Obj | None) -> str:
    """A metav1.LabelSelector in the form that queries take; None, which matches nothing, is ""."""
    terms = [(key, f"{key}={value}") for key, value in ((selector or {}).get("matchLabels") or {}).items()]
    for item in (selector or {}).get("matchExpressions") or ():
        values = ",".join(sorted(item.get("values") or ()))
        terms.append((item["key"], _SHOWN[item["operator"]].format(key=item["key"], values=values)))
    return ",".join(text for _, text in sorted(terms, key=lambda term: term[0]))


FieldGetter = Callable[[Obj, str], str | None]


@dataclass(frozen=True)
class Selector:
    """A label selector and a field selector together."""

    labels: tuple[Requirement, ...] = ()
    fields: tuple[tuple[str, bool, str], ...] = ()  # (path, equals, value)

    @property
    def everything(self) -> bool:
        """Whether nothing is filtered out."""
        return not self.labels and not self.fields

    def matches(self, obj: Obj) -> bool:
        """Whether an object satisfies both selectors."""
        if self.labels:
            labels = obj.get("metadata", {}).get("labels") or {}
            if not all(term.matches(labels) for term in self.labels):
                return False
        return all((field_value(obj, path) == value) == equals for path, equals, value in self.fields)


def field_value(obj: Obj, path: str) -> str:
    """The string that a field selector compares: "" for an absent field, as a real server does."""
    if path == "source":  # of events: whoever reported it, under its old or its new name
        return str((obj.get("source") or {}).get("component") or obj.get("reportingComponent", ""))
    value: object = obj
    for part in path.lstrip(".").split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def parse(labels: str, fields: str, supported: frozenset[str]) -> Selector:
    """Parse both selectors of a request. Raises ApiError 400 for bad syntax or an unsupported field."""
    terms = []
    for part in (piece for piece in fields.split(",") if piece.strip()):
        match = re.match(r"^\s*([^=!\s]+)\s*(==|=|!=)\s*(.*?)\s*$", part)
        if not match:
            raise errors.bad_request(f"invalid selector: '{fields}'; can't understand '{part}'")
        path, operator, value = match.groups()
        if path not in supported:
            raise errors.bad_request(f"field label not supported: {path}")
        terms.append((path, operator != "!=", value))
    return Selector(parse_labels(labels), tuple(terms))
