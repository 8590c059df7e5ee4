"""Rules of a pod's placement: affinity and topology spread.

Source of rules and messages: ValidateNodeSelectorRequirement, validateAffinity and validateTopologySpreadConstraints of
Kubernetes' pkg/apis/core/validation. The bundled schemas name required fields but no enumerations, and a real server
answers a missing field by these rules, not by the schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .. import errors, names
from ..errors import Cause
from ..store import Obj

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_ACTIONS = ("DoNotSchedule", "ScheduleAnyway")
_POLICIES = ("Honor", "Ignore")


def _invalid(field: str, value: Any, problems: list[str]) -> list[Cause]:
    return [errors.invalid_value(field, value, problem) for problem in problems]


def _key(item: Obj, field: str, key: str = "key") -> list[Cause]:
    return _invalid(f"{field}.{key}", item.get(key, ""), names.qualified(item.get(key, "")))


def _values(item: Obj, field: str, *, comparing: bool) -> list[Cause]:
    """The operator, and whether it has the values that it needs; `comparing` where Gt and Lt exist."""
    operator, values = item.get("operator", ""), item.get("values", [])
    if operator in ("In", "NotIn"):
        text = "must be specified when `operator` is 'In' or 'NotIn'"
        return [] if values else [errors.required(f"{field}.values", text)]
    if operator in ("Exists", "DoesNotExist"):
        text = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
        return [errors.forbidden_value(f"{field}.values", text)] if values else []
    if comparing and operator in ("Gt", "Lt"):
        text = "must be specified single value when `operator` is 'Lt' or 'Gt'"
        return [] if len(values) == 1 else [errors.required(f"{field}.values", text)]
    return [errors.invalid_value(f"{field}.operator", operator, "not a valid selector operator")]


def _requirement(item: Obj, field: str, *, comparing: bool) -> list[Cause]:
    found = _values(item, field, comparing=comparing) + _key(item, field)
    for index, value in enumerate(item.get("values", ())):
        found += _invalid(f"{field}.values[{index}]", value, names.label_value(value))
    return found


def _field_requirement(item: Obj, field: str) -> list[Cause]:
    """A requirement on a node's fields, of which only its name can be asked for."""
    found, values = [], item.get("values", [])
    if item.get("operator") not in ("In", "NotIn"):
        operator = item.get("operator", "")
        found.append(errors.invalid_value(f"{field}.operator", operator, "not a valid selector operator"))
    elif len(values) != 1:
        text = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector"
        found.append(errors.required(f"{field}.values", text))
    if item.get("key") != "metadata.name":
        return [*found, errors.invalid_value(f"{field}.key", item.get("key", ""), "not a valid field selector key")]
    for index, value in enumerate(values):
        found += _invalid(f"{field}.values[{index}]", value, names.subdomain(value))
    return found


def label_selector(selector: Obj, field: str) -> list[Cause]:
    """Field errors of a metav1.LabelSelector."""
    found = names.labels(selector.get("matchLabels", {}), f"{field}.matchLabels")
    for index, item in enumerate(selector.get("matchExpressions", ())):
        found += _requirement(item, f"{field}.matchExpressions[{index}]", comparing=False)
    return found


def _node_term(term: Obj, field: str) -> list[Cause]:
    found: list[Cause] = []
    for index, item in enumerate(term.get("matchExpressions", ())):
        found += _requirement(item, f"{field}.matchExpressions[{index}]", comparing=True)
    for index, item in enumerate(term.get("matchFields", ())):
        found += _field_requirement(item, f"{field}.matchFields[{index}]")
    return found


def _weight(item: Obj, field: str) -> list[Cause]:
    weight = item.get("weight", 0)
    text = "must be in the range 1-100"
    return [] if 1 <= weight <= 100 else [errors.invalid_value(f"{field}.weight", weight, text)]


def _topology_key(item: Obj, field: str) -> list[Cause]:
    if not item.get("topologyKey"):
        return [errors.required(f"{field}.topologyKey", "can not be empty")]
    return _key(item, field, "topologyKey")


def _selectors(item: Obj, field: str) -> Iterator[Cause]:
    for key in ("labelSelector", "namespaceSelector"):
        if key in item:
            yield from label_selector(item[key], f"{field}.{key}")


def _pod_term(term: Obj, field: str) -> list[Cause]:
    found = list(_selectors(term, field))
    for name in term.get("namespaces", ()):
        found += _invalid(f"{field}.namespace", name, names.dns_label(name))
    return found + _topology_key(term, field)


def affinity(rules: Obj, field: str) -> list[Cause]:
    """Field errors of a pod's affinity."""
    found: list[Cause] = []
    node = rules.get("nodeAffinity", {})
    if (required := node.get(REQUIRED)) is not None:
        at = f"{field}.nodeAffinity.{REQUIRED}.nodeSelectorTerms"
        if not required.get("nodeSelectorTerms"):
            found.append(errors.required(at, "must have at least one node selector term"))
        for index, term in enumerate(required.get("nodeSelectorTerms", ())):
            found += _node_term(term, f"{at}[{index}]")
    for index, item in enumerate(node.get(PREFERRED, ())):
        at = f"{field}.nodeAffinity.{PREFERRED}[{index}]"
        found += _weight(item, at) + _node_term(item.get("preference", {}), f"{at}.preference")
    for kind in ("podAffinity", "podAntiAffinity"):
        for index, term in enumerate(rules.get(kind, {}).get(REQUIRED, ())):
            found += _pod_term(term, f"{field}.{kind}.{REQUIRED}[{index}]")
        for index, item in enumerate(rules.get(kind, {}).get(PREFERRED, ())):
            at = f"{field}.{kind}.{PREFERRED}[{index}]"
            found += _weight(item, at) + _pod_term(item.get("podAffinityTerm", {}), f"{at}.podAffinityTerm")
    return found


def topology_spread(constraints: list[Obj], field: str) -> list[Cause]:
    """Field errors of a pod's topology spread constraints."""
    found: list[Cause] = []
    seen: set[tuple[str, str]] = set()
    for index, item in enumerate(constraints):
        at = f"{field}[{index}]"
        found += _positive(item.get("maxSkew", 0), f"{at}.maxSkew") + _topology_key(item, at)
        action = item.get("whenUnsatisfiable", "")
        if action not in _ACTIONS:
            found.append(errors.unsupported_value(f"{at}.whenUnsatisfiable", action, _ACTIONS))
        pair = (item.get("topologyKey", ""), action)
        if pair in seen:
            shown = "{" + ", ".join(pair) + "}"
            found.append(errors.duplicate_value(f"{at}.{{topologyKey, whenUnsatisfiable}}", shown))
        seen.add(pair)
        if "minDomains" in item:
            found += _positive(item["minDomains"], f"{at}.minDomains")
            if action != "DoNotSchedule":
                text = f"can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}"
                found.append(errors.invalid_value(f"{at}.minDomains", item["minDomains"], text))
        for key in ("nodeAffinityPolicy", "nodeTaintsPolicy"):
            if item.get(key, "Honor") not in _POLICIES:
                found.append(errors.unsupported_value(f"{at}.{key}", item[key], _POLICIES))
        found += _selectors(item, at)
    return found


def _positive(value: int, field: str) -> list[Cause]:
    return [] if value > 0 else [errors.invalid_value(field, value, "must be greater than zero")]
