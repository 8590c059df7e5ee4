"""A Deployment's status and conditions, without any request.

Source: k8s.io/kubernetes/pkg/controller/deployment/{progress,sync}.go.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from trireme_local.controllers.podranking import parse_time
from trireme_local.controllers.rollout import replicas_of, status_count, surge_and_unavailable
from trireme_local.events import now_text
from trireme_local.kube import JsonObject

AVAILABLE, PROGRESSING, REPLICA_FAILURE = "Available", "Progressing", "ReplicaFailure"
TIMED_OUT = "ProgressDeadlineExceeded"
NEW_AVAILABLE = "NewReplicaSetAvailable"
PAUSED, RESUMED = "DeploymentPaused", "DeploymentResumed"
# The largest int32 means: no deadline.
NO_DEADLINE = 2**31 - 1

Conditions = list[JsonObject]


def condition(conditions: Iterable[JsonObject] | None, kind: str) -> JsonObject | None:
    """The condition of that type."""
    return next((item for item in conditions or [] if item["type"] == kind), None)


def make(kind: str, status: str, reason: str, message: str) -> JsonObject:
    """A DeploymentCondition of now."""
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastUpdateTime": now_text(),
        "lastTransitionTime": now_text(),
    }


def with_condition(conditions: Iterable[JsonObject], new: JsonObject) -> Conditions:
    """`conditions` with `new`: as it was where status and reason stay, the old transition time where status does."""
    kept = list(conditions)
    before = condition(kept, new["type"])
    if before is not None and (before["status"], before.get("reason")) == (new["status"], new["reason"]):
        return kept
    if before is not None and before["status"] == new["status"]:
        new = {**new, "lastTransitionTime": before.get("lastTransitionTime", new["lastTransitionTime"])}
    return [*(item for item in kept if item["type"] != new["type"]), new]


def without(conditions: Iterable[JsonObject], kind: str) -> Conditions:
    """`conditions` but those of that type."""
    return [item for item in conditions if item["type"] != kind]


def has_deadline(deployment: JsonObject) -> bool:
    """Whether a rollout that does not progress is reported as failed."""
    return bool(deployment["spec"].get("progressDeadlineSeconds", NO_DEADLINE) != NO_DEADLINE)


def is_complete(deployment: JsonObject, status: JsonObject) -> bool:
    """All pods are of the new template and available, and no other is left."""
    wanted = replicas_of(deployment)
    counts = [status.get(key, 0) for key in ("updatedReplicas", "replicas", "availableReplicas")]
    return counts == [wanted] * 3 and status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]


def is_progressing(deployment: JsonObject, status: JsonObject) -> bool:
    """Whether the status shows more progress than the one before it."""
    before = deployment.get("status") or {}

    def old_replicas(item: JsonObject) -> int:
        return int(item.get("replicas", 0)) - int(item.get("updatedReplicas", 0))

    more = any(
        status.get(key, 0) > before.get(key, 0) for key in ("updatedReplicas", "readyReplicas", "availableReplicas")
    )
    return more or old_replicas(status) < old_replicas(before)


def deadline_of(deployment: JsonObject, conditions: Iterable[JsonObject]) -> datetime | None:
    """When the rollout counts as stuck, None when it cannot (complete, or without a deadline)."""
    progressing = condition(conditions, PROGRESSING)
    if not has_deadline(deployment) or progressing is None or progressing.get("reason") == NEW_AVAILABLE:
        return None
    began = parse_time(progressing.get("lastUpdateTime") or progressing["lastTransitionTime"])
    return began + timedelta(seconds=deployment["spec"]["progressDeadlineSeconds"])


def has_timed_out(deployment: JsonObject, conditions: Iterable[JsonObject], now: datetime) -> bool:
    """Whether the deadline has passed without progress."""
    progressing = condition(conditions, PROGRESSING)
    if progressing is not None and progressing.get("reason") == TIMED_OUT:
        return has_deadline(deployment)
    deadline = deadline_of(deployment, conditions)
    return deadline is not None and deadline < now


def counts_of(deployment: JsonObject, replica_sets: list[JsonObject], new: JsonObject | None) -> JsonObject:
    """The status without Progressing and ReplicaFailure brought up to date."""
    wanted = replicas_of(deployment)
    available = sum(status_count(item, "availableReplicas") for item in replica_sets)
    counts = {
        "replicas": sum(status_count(item, "replicas") for item in replica_sets),
        "updatedReplicas": status_count(new, "replicas") if new is not None else 0,
        "readyReplicas": sum(status_count(item, "readyReplicas") for item in replica_sets),
        "availableReplicas": available,
        "unavailableReplicas": max(0, sum(replicas_of(item) for item in replica_sets) - available),
    }
    before = deployment.get("status") or {}
    _, unavailable = surge_and_unavailable(deployment)
    if available >= wanted - unavailable:
        fresh = make(AVAILABLE, "True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    else:
        text = "Deployment does not have minimum availability."
        fresh = make(AVAILABLE, "False", "MinimumReplicasUnavailable", text)
    return {
        "observedGeneration": deployment["metadata"]["generation"],
        **{key: value for key, value in counts.items() if value},
        **({"collisionCount": before["collisionCount"]} if "collisionCount" in before else {}),
        "conditions": with_condition(before.get("conditions") or [], fresh),
    }


def _subject(deployment: JsonObject, new: JsonObject | None) -> str:
    if new is not None:
        return f'ReplicaSet "{new["metadata"]["name"]}"'
    return f'Deployment "{deployment["metadata"]["name"]}"'


def _progress(deployment: JsonObject, status: JsonObject, new: JsonObject | None, now: datetime) -> Conditions:
    """The conditions with Progressing as the counts say it."""
    conditions: Conditions = status["conditions"]
    current, subject = condition(conditions, PROGRESSING), _subject(deployment, new)
    if is_complete(deployment, status):
        text = f"{subject} has successfully progressed."
        return with_condition(conditions, make(PROGRESSING, "True", NEW_AVAILABLE, text))
    if is_progressing(deployment, status):
        fresh = make(PROGRESSING, "True", "ReplicaSetUpdated", f"{subject} is progressing.")
        if current is not None and current["status"] == "True":
            fresh["lastTransitionTime"] = current.get("lastTransitionTime", fresh["lastTransitionTime"])
        return [*without(conditions, PROGRESSING), fresh]
    if has_timed_out(deployment, deployment.get("status", {}).get("conditions") or [], now):
        return with_condition(
            conditions, make(PROGRESSING, "False", TIMED_OUT, f"{subject} has timed out progressing.")
        )
    return conditions


def rollout_status(
    deployment: JsonObject, replica_sets: list[JsonObject], new: JsonObject | None, now: datetime | None = None
) -> JsonObject:
    """The status of a Deployment with these ReplicaSets, `new` among them where it is there."""
    status = counts_of(deployment, replica_sets, new)
    current = condition(status["conditions"], PROGRESSING)
    if not has_deadline(deployment):
        status["conditions"] = without(status["conditions"], PROGRESSING)
    else:
        done = status.get("replicas", 0) == status.get("updatedReplicas", 0)
        if not (done and current is not None and current.get("reason") == NEW_AVAILABLE):
            status["conditions"] = _progress(deployment, status, new, now or datetime.now(UTC))
    failures = [condition((item.get("status") or {}).get("conditions"), REPLICA_FAILURE) for item in replica_sets]
    own = condition(((new or {}).get("status") or {}).get("conditions"), REPLICA_FAILURE)
    failure = own or next((item for item in failures if item is not None), None)
    if failure is None:
        status["conditions"] = without(status["conditions"], REPLICA_FAILURE)
    else:
        fresh = make(REPLICA_FAILURE, failure["status"], failure.get("reason", ""), failure.get("message", ""))
        fresh["lastTransitionTime"] = failure.get("lastTransitionTime", fresh["lastTransitionTime"])
        status["conditions"] = with_condition(status["conditions"], fresh)
    return status
