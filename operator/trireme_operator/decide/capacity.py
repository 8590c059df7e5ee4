"""Whether the cluster has room for a whole gang: node allocatable minus what bound pods requested.

This is a check before pods are created, not a scheduler: it says "no room" only because of what it reads (resources,
node selector, taints, required node affinity), and the scheduler has the last word.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trireme.resources.base import parse_quantity
from trireme.resources.common import Resources, TrainingJobSpec
from trireme_operator.decide.model import Claim, NodeView, Quantities


@dataclass(frozen=True)
class Room:
    """Outcome of a capacity check."""

    wanted: int
    found: int
    eligible: int  # nodes that would do if they were empty of other jobs
    total: int

    @property
    def enough(self) -> bool:
        return self.found >= self.wanted

    def message(self) -> str:
        """The numbers, for people."""
        return (
            f"{self.wanted} nodes with enough free resources needed, {self.found} found "
            f"({self.total} nodes, {self.eligible} ready and matching)"
        )


def check(
    nodes: Sequence[NodeView],
    spec: TrainingJobSpec,
    requests: Quantities,
    wanted: int,
    *,
    barred: frozenset[str] = frozenset(),
    claims: Iterable[Claim] = (),
) -> Room:
    """Look for `wanted` different nodes outside `barred` after all `claims` were satisfied, in their order."""
    free = list(nodes)
    for claim in claims:
        free = _take(free, claim)
    eligible = [n for n in free if _eligible(n, spec) and n.name not in barred]
    found = sum(1 for n in eligible if _has_room(n, requests))
    return Room(wanted=wanted, found=found, eligible=len(eligible), total=len(nodes))


def pod_resources(spec: TrainingJobSpec) -> Resources:
    """Requests and limits of a training pod: the spec's, and one device per rank."""
    device, given = spec.workers.accelerator.requested_resource, spec.workers.resources
    if device is None:
        return given
    count = {device: str(spec.workers.devices_per_node)}
    return Resources(requests={**given.requests, **count}, limits={**given.limits, **count})


def pod_requests(spec: TrainingJobSpec) -> Quantities:
    """Requests of a training pod in thousandths; where only a limit is given, it is the request."""
    resources = pod_resources(spec)
    return {n: int(parse_quantity(q) * 1000) for n, q in {**resources.limits, **resources.requests}.items()}


def suitable(nodes: Iterable[NodeView], spec: TrainingJobSpec, requests: Quantities) -> frozenset[str]:
    """Nodes on which a pod of the job could run if nothing else did."""
    return frozenset(
        n.name for n in nodes if _eligible(n, spec) and _has_room(replace(n, free=n.allocatable or n.free), requests)
    )


def _take(nodes: list[NodeView], claim: Claim) -> list[NodeView]:
    """The nodes after a claim took its share; a gang that does not fit whole takes nothing."""
    wanted = claim.unbound + claim.missing
    candidates = [
        n for n in nodes if n.name not in claim.own_nodes and _eligible(n, claim.spec) and _has_room(n, claim.requests)
    ]
    if claim.waiting and len(candidates) < wanted:
        return nodes
    chosen = {n.name for n in candidates[:wanted]}
    return [_minus(n, claim.requests) if n.name in chosen else n for n in nodes]


def _minus(node: NodeView, requests: Quantities) -> NodeView:
    free = {name: node.free.get(name, 0) - requests.get(name, 0) for name in {*node.free, *requests}}
    free["pods"] = node.free.get("pods", 0) - 1000
    return replace(node, free=free)


def _has_room(node: NodeView, requests: Quantities) -> bool:
    wanted = {**requests, "pods": 1000}
    return all(node.free.get(name, 0) >= amount for name, amount in wanted.items() if amount > 0)


def _eligible(node: NodeView, spec: TrainingJobSpec) -> bool:
    workers = spec.workers
    if not (node.ready and node.schedulable):
        return False
    if any(node.labels.get(key) != value for key, value in workers.node_selector.items()):
        return False
    if not all(_tolerated(taint, workers.tolerations) for taint in node.taints):
        return False
    required = ((workers.affinity or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    terms = (required or {}).get("nodeSelectorTerms") or []
    return not terms or any(_matches(node, term) for term in terms)


def _tolerated(taint: Mapping[str, str], tolerations: Sequence[Mapping[str, Any]]) -> bool:
    if taint.get("effect") not in ("NoSchedule", "NoExecute"):
        return True
    for toleration in tolerations:
        if toleration.get("effect") not in (None, "", taint.get("effect")):
            continue
        if toleration.get("key") in (None, "") and toleration.get("operator") == "Exists":
            return True
        if toleration.get("key") != taint.get("key"):
            continue
        if toleration.get("operator") == "Exists" or toleration.get("value", "") == taint.get("value", ""):
            return True
    return False


def _matches(node: NodeView, term: Mapping[str, Any]) -> bool:
    fields = {"metadata.name": node.name}
    return all(_holds(e, node.labels) for e in term.get("matchExpressions") or []) and all(
        _holds(e, fields) for e in term.get("matchFields") or []
    )


def _holds(expression: Mapping[str, Any], values: Mapping[str, str]) -> bool:
    key, operator, wanted = expression.get("key", ""), expression.get("operator"), expression.get("values") or []
    present = values.get(key)
    if operator == "In":
        return present in wanted
    if operator == "NotIn":
        return present not in wanted
    if operator == "Exists":
        return present is not None
    if operator == "DoesNotExist":
        return present is None
    try:
        number, bound = int(present or ""), int(wanted[0])
    except (ValueError, IndexError):
        return False
    return number > bound if operator == "Gt" else number < bound
