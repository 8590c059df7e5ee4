"""Where a pod may and should run: the pure part of the scheduler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from trireme_local.kube import JsonObject
from trireme_local.quantities import (
    Amounts,
    add,
    amounts,
    is_finished,
    lacking,
    pod_amounts,
    used_amounts,
)
from trireme_local.selectors import (
    label_selector_matches,
    node_matches,
    preferred_node_weight,
    tolerates,
    untolerated,
)

HOSTNAME = "kubernetes.io/hostname"


@dataclass
class NodeView:
    """A node and the pods that occupy it."""

    node: JsonObject
    pods: list[JsonObject] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The node's name."""
        return str(self.node["metadata"]["name"])

    @property
    def labels(self) -> dict[str, str]:
        """The node's labels."""
        return self.node["metadata"].get("labels") or {}

    def free(self) -> Amounts:
        """Allocatable minus what the pods here ask for, in thousandths."""
        allocatable = amounts((self.node.get("status") or {}).get("allocatable"))
        return add(allocatable, {name: -value for name, value in used_amounts(self.pods).items()})

    def load(self) -> float:
        """Largest used share of cpu and memory."""
        allocatable = amounts((self.node.get("status") or {}).get("allocatable"))
        used = used_amounts(self.pods)
        return max((used.get(name, 0) / max(1, allocatable.get(name, 0)) for name in ("cpu", "memory")), default=0.0)


@dataclass(frozen=True)
class Placement:
    """The node chosen, or why there is none."""

    node: str | None
    message: str = ""


def _terms(pod: JsonObject, kind: str) -> list[JsonObject]:
    affinity = (pod["spec"].get("affinity") or {}).get(kind) or {}
    return list(affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or [])


def _selects(term: JsonObject, owner: JsonObject, other: JsonObject) -> bool:
    """The affinity term of `owner` selects the pod `other`."""
    namespace = other["metadata"]["namespace"]
    namespaces = term.get("namespaces") or []
    everywhere = term.get("namespaceSelector") == {}
    if not everywhere and namespace not in (namespaces or [owner["metadata"]["namespace"]]):
        return False
    return label_selector_matches(term.get("labelSelector"), other["metadata"].get("labels"))


def _domain_pods(view: NodeView, key: str, views: Sequence[NodeView]) -> list[JsonObject]:
    """Unfinished pods in the topology domain of the node."""
    value = view.labels.get(key)
    if value is None:
        return []
    return [pod for other in views if other.labels.get(key) == value for pod in other.pods if not is_finished(pod)]


def _affinity_refusal(pod: JsonObject, view: NodeView, views: Sequence[NodeView]) -> str | None:
    for term in _terms(pod, "podAffinity"):
        if view.labels.get(term["topologyKey"]) is None:
            return "node(s) didn't match pod affinity rules"
        here = any(_selects(term, pod, other) for other in _domain_pods(view, term["topologyKey"], views))
        anywhere = any(_selects(term, pod, other) for item in views for other in item.pods if not is_finished(other))
        # The first pod of a group that selects itself may go anywhere.
        first = not anywhere and _selects(term, pod, pod)
        if not here and not first:
            return "node(s) didn't match pod affinity rules"
    for term in _terms(pod, "podAntiAffinity"):
        if any(_selects(term, pod, other) for other in _domain_pods(view, term["topologyKey"], views)):
            return "node(s) didn't match pod anti-affinity rules"
    for other_view in views:
        for other in other_view.pods:
            if is_finished(other):
                continue
            for term in _terms(other, "podAntiAffinity"):
                value = other_view.labels.get(term["topologyKey"])
                same = value is not None and view.labels.get(term["topologyKey"]) == value
                if same and _selects(term, other, pod):
                    return "node(s) didn't satisfy existing pods anti-affinity rules"
    return None


def _matching_by_domain(pod: JsonObject, constraint: JsonObject, views: Sequence[NodeView]) -> Counter[str]:
    key, counts = constraint["topologyKey"], Counter[str]()
    for view in views:
        if (domain := view.labels.get(key)) is None or not node_matches(pod, view.node):
            continue
        counts[domain] += sum(
            1
            for other in view.pods
            if not is_finished(other)
            and not other["metadata"].get("deletionTimestamp")
            and other["metadata"]["namespace"] == pod["metadata"]["namespace"]
            and label_selector_matches(constraint.get("labelSelector"), other["metadata"].get("labels"))
        )
    return counts


def _spread_refusal(pod: JsonObject, view: NodeView, views: Sequence[NodeView]) -> str | None:
    for constraint in pod["spec"].get("topologySpreadConstraints") or []:
        if constraint.get("whenUnsatisfiable") != "DoNotSchedule":
            continue
        domain = view.labels.get(constraint["topologyKey"])
        if domain is None:
            return "node(s) didn't match pod topology spread constraints (missing required label)"
        counts = _matching_by_domain(pod, constraint, views)
        itself = label_selector_matches(constraint.get("labelSelector"), pod["metadata"].get("labels"))
        if counts[domain] + int(itself) - min(counts.values()) > constraint["maxSkew"]:
            return "node(s) didn't match pod topology spread constraints"
    return None


def refusals(pod: JsonObject, view: NodeView, views: Sequence[NodeView]) -> list[str]:
    """Why the pod cannot run on the node, in the words of kube-scheduler; empty when it can."""
    spec = view.node.get("spec") or {}
    taint = untolerated(pod, spec.get("taints"), ("NoSchedule", "NoExecute"))
    if taint is not None:
        if taint["key"] == "node.kubernetes.io/unschedulable":
            return ["node(s) were unschedulable"]
        return [f"node(s) had untolerated taint(s) {{{taint['key']}: {taint.get('value', '')}}}"]
    marker = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    if spec.get("unschedulable") and untolerated(pod, [marker], ("NoSchedule",)):
        return ["node(s) were unschedulable"]
    if not node_matches(pod, view.node):
        return ["node(s) didn't match Pod's node affinity/selector"]
    missing = lacking({**pod_amounts(pod), "pods": 1000}, view.free())
    if missing:
        return ["Too many pods" if name == "pods" else f"Insufficient {name}" for name in missing]
    for check in (_affinity_refusal, _spread_refusal):
        if reason := check(pod, view, views):
            return [reason]
    return []


def _score(pod: JsonObject, view: NodeView, views: Sequence[NodeView]) -> tuple[float, ...]:
    """Larger is better: preferred affinity, few PreferNoSchedule taints, soft spread, then the least loaded."""
    taints = (view.node.get("spec") or {}).get("taints") or []
    tolerations = pod["spec"].get("tolerations") or []
    avoided = sum(
        1
        for taint in taints
        if taint["effect"] == "PreferNoSchedule" and not any(tolerates(item, taint) for item in tolerations)
    )
    spread = 0
    for constraint in pod["spec"].get("topologySpreadConstraints") or []:
        domain = view.labels.get(constraint["topologyKey"])
        if domain is not None:
            spread += _matching_by_domain(pod, constraint, views)[domain]
    soft = _soft_affinity(pod, view, views)
    return (preferred_node_weight(pod, view.node) + soft, -avoided, -spread, -view.load(), -len(view.pods))


def _soft_affinity(pod: JsonObject, view: NodeView, views: Sequence[NodeView]) -> int:
    total = 0
    for kind, sign in (("podAffinity", 1), ("podAntiAffinity", -1)):
        affinity = (pod["spec"].get("affinity") or {}).get(kind) or {}
        for weighted in affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or []:
            term = weighted["podAffinityTerm"]
            if any(_selects(term, pod, other) for other in _domain_pods(view, term["topologyKey"], views)):
                total += sign * int(weighted["weight"])
    return total


def place(pod: JsonObject, views: Sequence[NodeView]) -> Placement:
    """The best node for the pod, or the message "0/3 nodes are available: ..."."""
    reasons: Counter[str] = Counter()
    possible = []
    for view in views:
        found = refusals(pod, view, views)
        if found:
            reasons.update(found)
        else:
            possible.append(view)
    if possible:
        best = max(possible, key=lambda view: (_score(pod, view, views), view.name))
        return Placement(best.name)
    text = ", ".join(sorted(f"{count} {reason}" for reason, count in reasons.items()))
    if not views:
        return Placement(None, "no nodes available to schedule pods")
    return Placement(None, f"0/{len(views)} nodes are available: {text}.")
