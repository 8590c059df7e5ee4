"""Label selectors, node selectors, taints and tolerations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trireme_local.kube import JsonObject

Labels = Mapping[str, str]


def _requirement(labels: Labels, key: str, operator: str, values: Sequence[str]) -> bool:
    """One match expression. Source: k8s.io/apimachinery/pkg/labels.Requirement.Matches."""
    if operator == "In":
        return key in labels and labels[key] in values
    if operator == "NotIn":
        return key not in labels or labels[key] not in values
    if operator == "Exists":
        return key in labels
    if operator == "DoesNotExist":
        return key not in labels
    if operator in ("Gt", "Lt"):
        try:
            left, right = int(labels[key]), int(values[0])
        except (KeyError, ValueError, IndexError):
            return False
        return left > right if operator == "Gt" else left < right
    return False


def _expressions(labels: Labels, expressions: Sequence[JsonObject] | None) -> bool:
    return all(
        _requirement(labels, item["key"], item["operator"], item.get("values") or []) for item in expressions or []
    )


def label_selector_matches(selector: JsonObject | None, labels: Labels | None) -> bool:
    """A metav1.LabelSelector: None matches nothing, {} matches everything."""
    if selector is None:
        return False
    labels = labels or {}
    exact = all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())
    return exact and _expressions(labels, selector.get("matchExpressions"))


def _term_matches(term: JsonObject, node: JsonObject) -> bool:
    labels = node["metadata"].get("labels") or {}
    if not term.get("matchExpressions") and not term.get("matchFields"):
        return False
    fields = {"metadata.name": node["metadata"]["name"]}
    return _expressions(labels, term.get("matchExpressions")) and _expressions(fields, term.get("matchFields"))


def node_matches(pod: JsonObject, node: JsonObject) -> bool:
    """The pod's nodeSelector and required node affinity hold on the node."""
    labels = node["metadata"].get("labels") or {}
    if not all(labels.get(key) == value for key, value in (pod["spec"].get("nodeSelector") or {}).items()):
        return False
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    return required is None or any(_term_matches(term, node) for term in required.get("nodeSelectorTerms") or [])


def preferred_node_weight(pod: JsonObject, node: JsonObject) -> int:
    """Sum of the weights of the preferred node affinity terms that hold on the node."""
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    return sum(
        int(term["weight"])
        for term in affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or []
        if _term_matches(term["preference"], node)
    )


def tolerates(toleration: JsonObject, taint: JsonObject) -> bool:
    """Source: k8s.io/api/core/v1.Toleration.ToleratesTaint."""
    if toleration.get("effect") and toleration["effect"] != taint["effect"]:
        return False
    if toleration.get("key") and toleration["key"] != taint["key"]:
        return False
    if not toleration.get("key") and toleration.get("operator") != "Exists":
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return True
    return bool(toleration.get("value", "") == taint.get("value", ""))


def untolerated(pod: JsonObject, taints: Sequence[JsonObject] | None, effects: Sequence[str]) -> JsonObject | None:
    """The first taint with one of `effects` that no toleration of the pod covers."""
    tolerations = pod["spec"].get("tolerations") or []
    for taint in taints or []:
        if taint["effect"] in effects and not any(tolerates(item, taint) for item in tolerations):
            return taint
    return None
