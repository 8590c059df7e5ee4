"""Nodes that a job keeps off: which faults count against them, for how long, and when there is no choice."""

from collections.abc import Iterable, Sequence

from trireme.resources.common import TrainingJobSpec
from trireme.resources.status import NodeRecord
from trireme_operator.decide import capacity
from trireme_operator.decide.model import NodeView, Policy, Quantities, to_time


def counts(record: NodeRecord, now: float, policy: Policy) -> bool:
    """Whether a record is recent enough to say anything about its node."""
    return record.at is not None and now - record.at.timestamp() < policy.exclusion_seconds


def noted(
    records: Iterable[NodeRecord], node: str, reason: str, now: float, policy: Policy, *, exclude: bool = False
) -> list[NodeRecord]:
    """The records with one more fault of a node, which excludes it when `exclude` or when there were too many."""
    kept = {r.node: r for r in records if counts(r, now, policy)}
    old = kept.get(node, NodeRecord(node=node))
    failures = old.failures + 1
    excluded = exclude or old.excluded or failures >= policy.exclude_after_failures
    kept[node] = NodeRecord(node=node, failures=failures, excluded=excluded, reason=reason[:1024], at=to_time(now))
    return sorted(kept.values(), key=lambda r: r.node)


def excluded(
    records: Iterable[NodeRecord],
    nodes: Sequence[NodeView] | None,
    spec: TrainingJobSpec,
    requests: Quantities,
    slots: int,
    now: float,
    policy: Policy,
) -> tuple[str, ...]:
    """Nodes to keep off now.

    A gang on doubtful nodes is better than none: where the other nodes would not do for all slots even if they were
    empty, the oldest exclusions are lifted.
    """
    barred = [r for r in records if r.excluded and counts(r, now, policy)]
    if not barred or nodes is None:
        return tuple(sorted(r.node for r in barred))
    suitable = capacity.suitable(nodes, spec, requests)
    spare = len(suitable) - slots
    found = []
    for record in sorted(barred, key=lambda r: (r.at.timestamp() if r.at else 0.0, r.node), reverse=True):
        if record.node in suitable:
            if spare <= 0:
                continue
            spare -= 1
        found.append(record.node)
    return tuple(sorted(found))
