"""Which pods are ready and available, and which of a ReplicaSet's go first when there are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cmp_to_key
from math import log2

from trireme_local.kube import JsonObject
from trireme_local.quantities import is_finished

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
_PHASES = {"Pending": 0, "Unknown": 1, "Running": 2}


def parse_time(text: str) -> datetime:
    """A metav1.Time."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def ready_since(pod: JsonObject) -> datetime | None:
    """When the pod became Ready, None while it is not."""
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition["type"] == "Ready" and condition["status"] == "True":
            return parse_time(condition.get("lastTransitionTime") or pod["metadata"]["creationTimestamp"])
    return None


def is_available(pod: JsonObject, min_ready_seconds: float, now: datetime) -> bool:
    """Ready for at least `min_ready_seconds`."""
    since = ready_since(pod)
    return since is not None and (not min_ready_seconds or (now - since).total_seconds() >= min_ready_seconds)


def is_active(pod: JsonObject) -> bool:
    """Neither finished nor on its way out."""
    return not is_finished(pod) and not pod["metadata"].get("deletionTimestamp")


def _cost(pod: JsonObject) -> int:
    try:
        return int((pod["metadata"].get("annotations") or {}).get(DELETION_COST, "0"))
    except ValueError:
        return 0


def _restarts(pod: JsonObject) -> int:
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return max((item.get("restartCount", 0) for item in statuses), default=0)


def _age_bucket(moment: datetime, now: datetime) -> int:
    """Ages are compared by order of magnitude, so that not always the newest pods go."""
    seconds = (now - moment).total_seconds()
    return int(log2(seconds * 1e9)) if seconds > 0 else 0


def _order(left: tuple[JsonObject, int], right: tuple[JsonObject, int], now: datetime) -> int:
    """Negative when `left` goes before `right`. Source: ActivePodsWithRanks.Less of pkg/controller."""
    (one, one_rank), (two, two_rank) = left, right
    one_status, two_status = one.get("status") or {}, two.get("status") or {}
    one_ready, two_ready = ready_since(one), ready_since(two)
    steps = [
        (bool(one["spec"].get("nodeName")), bool(two["spec"].get("nodeName"))),
        (_PHASES.get(one_status.get("phase", ""), 0), _PHASES.get(two_status.get("phase", ""), 0)),
        (one_ready is not None, two_ready is not None),
        (_cost(one), _cost(two)),
        (-one_rank, -two_rank),
    ]
    if one_ready is not None and two_ready is not None and one_ready != two_ready:
        steps.append((_age_bucket(one_ready, now), _age_bucket(two_ready, now)))
    steps.append((-_restarts(one), -_restarts(two)))
    made = [parse_time(pod["metadata"]["creationTimestamp"]) for pod in (one, two)]
    steps.append((_age_bucket(made[0], now), _age_bucket(made[1], now)))
    for first, second in steps:
        if first != second:
            return -1 if first < second else 1
    return -1 if one["metadata"]["uid"] < two["metadata"]["uid"] else 1


def pods_to_delete(
    pods: list[JsonObject], count: int, related: Iterable[JsonObject], now: datetime | None = None
) -> list[JsonObject]:
    """The `count` pods to delete first: not on a node, not running, not ready, cheap, crowded, young.

    `related` are the active pods of the same Deployment (or ReplicaSet): the more of them a node has, the sooner one
    of its pods goes.
    """
    if count >= len(pods):
        return list(pods)
    crowd = Counter(pod["spec"].get("nodeName") for pod in related if is_active(pod))
    moment = now or datetime.now(UTC)
    ranked = [(pod, crowd[pod["spec"].get("nodeName")]) for pod in pods]

    def order(left: tuple[JsonObject, int], right: tuple[JsonObject, int]) -> int:
        return _order(left, right, moment)

    ranked.sort(key=cmp_to_key(order))
    return [pod for pod, _ in ranked[:count]]
