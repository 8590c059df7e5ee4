"""What is in a cluster at a glance: one list request per kind, and of each object the facts that people watch."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from pydantic import ValidationError

from trireme.resources import GROUP, VERSION, all_kinds
from trireme.resources.inference_status import ServiceCondition, ServiceStatus
from trireme.resources.status import Category, Condition, ConditionType, JobState, JobStatus, TimeStatus
from trireme_cli.cluster import Cluster, ClusterError, ResourceType
from trireme_cli.jobs import Resource

PAGE_OBJECTS = 500
HOLDING_STATES = frozenset(
    {
        JobState.SCHEDULING,
        JobState.PREPARING,
        JobState.STARTING,
        JobState.RUNNING,
        JobState.RESTARTING,
        JobState.SUSPENDING,
    }
)
"""States in which a job has pods, and with them devices, or is getting them."""
JOB_HEADLINES: tuple[tuple[ConditionType, str], ...] = (
    (ConditionType.FAILED, "True"),
    (ConditionType.ACCEPTED, "False"),
    (ConditionType.SUCCEEDED, "True"),
    (ConditionType.SUSPENDED, "True"),
    (ConditionType.INPUTS_READY, "False"),
    (ConditionType.RESTARTING, "True"),
    (ConditionType.SCHEDULED, "False"),
    (ConditionType.CHECKPOINT_HEALTHY, "False"),
    (ConditionType.RUNNING, "True"),
)
"""Which condition says best why a job is in its state: the first of these that is so."""
SERVICE_HEADLINES: tuple[tuple[ServiceCondition, str], ...] = (
    (ServiceCondition.ACCEPTED, "False"),
    (ServiceCondition.MODEL_AVAILABLE, "False"),
    (ServiceCondition.READY, "False"),
    (ServiceCondition.ADAPTERS_LOADED, "False"),
    (ServiceCondition.READY, "True"),
)


@dataclass(frozen=True)
class Entry(Resource):
    """One object of one of Trireme's kinds, with its status as the kind's model reads it."""

    status: JobStatus | ServiceStatus

    @property
    def created_at(self) -> datetime:
        return datetime.fromisoformat(self.raw["metadata"]["creationTimestamp"])


@dataclass(frozen=True)
class Overview:
    """All objects that could be read, in the order of kinds and names, and what could not be read, in words."""

    entries: tuple[Entry, ...]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """What a table shows of one object; None where the kind has no such fact or it is not known yet."""

    kind: str
    plural: str
    short_name: str
    namespace: str
    name: str
    state: str
    reason: str
    message: str
    created_at: datetime
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    goodput: float | None = None
    restarts: int | None = None
    checkpoint_step: int | None = None
    checkpoint_at: datetime | None = None
    devices: int | None = None
    holds_devices: bool = False
    eta_seconds: float | None = None
    ready: int | None = None
    replicas: int | None = None
    url: str | None = None


def read_overview(cluster: Cluster, namespace: str | None) -> Overview:
    """List every kind once, in one namespace or (None) in all. Raises ClusterError when no kind can be listed."""
    entries: list[Entry] = []
    problems: list[str] = []
    refusals: list[ClusterError] = []
    kinds = all_kinds()
    for info in kinds:
        resource = ResourceType(GROUP, VERSION, info.plural, info.singular, info.kind, True, info.short_names)
        try:
            objects = list(_list(cluster, resource, namespace))
        except ClusterError as error:
            missing = f"the cluster has no {info.plural}.{GROUP}: install the Helm chart, or run `trireme install`"
            problems.append(missing if error.status == 404 else f"{info.plural}: {error}")
            refusals.append(error)
            continue
        for raw in objects:
            try:
                status = info.status_model.model_validate(raw.get("status") or {})
            except ValidationError as error:
                problem = f"{error.error_count()} fields of its status are of another version"
                problems.append(f"{info.kind}/{raw['metadata']['name']}: {problem}")
                continue
            assert isinstance(status, JobStatus | ServiceStatus)
            entries.append(Entry(resource, raw, status))
    if len(refusals) == len(kinds):
        raise ClusterError(refusals[0].status, problems[0], refusals[0].reason)
    return Overview(tuple(entries), tuple(problems))


def _list(cluster: Cluster, resource: ResourceType, namespace: str | None) -> Iterator[dict[str, Any]]:
    """All objects of a kind. resourceVersion 0 lets the API server answer from its cache, without etcd."""
    query = {"limit": str(PAGE_OBJECTS), "resourceVersion": "0"}
    while True:
        answer = cluster.request("GET", resource.path(namespace), query=query)
        yield from answer["items"]
        token = answer["metadata"].get("continue")
        if not token:
            return
        query = {"limit": str(PAGE_OBJECTS), "continue": token}


def rows(entries: Iterable[Entry], now: datetime) -> list[Row]:
    """A row for each of the entries."""
    return [row_of(entry, now) for entry in entries]


def row_of(entry: Entry, now: datetime) -> Row:
    """The facts of one object as of `now`."""
    status = entry.status
    return _service_row(entry, status) if isinstance(status, ServiceStatus) else _job_row(entry, status, now)


def _known_row(entry: Entry, headlines: Iterable[tuple[str, str]]) -> partial[Row]:
    """A row of what every kind has; a kind's own facts are for the caller to add."""
    status = entry.status
    return partial(
        Row,
        entry.type.kind,
        entry.type.plural,
        entry.type.short_names[0],
        entry.namespace,
        entry.name,
        status.state,
        *_headline(status.conditions, headlines),
        entry.created_at,
    )


def _job_row(entry: Entry, status: JobStatus, now: datetime) -> Row:
    progress, resolved, checkpoint = status.progress, status.resolved, status.checkpoint
    running = status.state is JobState.RUNNING
    row_with = _known_row(entry, JOB_HEADLINES)
    return row_with(
        step=progress.step if progress else None,
        total_steps=(progress.total_steps or None) if progress else None,
        loss=finite(progress.loss) if progress else None,
        # Of a job that does not run they are of a time past; its charts show that.
        tokens_per_second=finite(progress.tokens_per_second) if progress and running else None,
        mfu=finite(progress.mfu) if progress and running else None,
        eta_seconds=finite(progress.eta_seconds) if progress and running else None,
        goodput=goodput_ratio(seconds_until(status.time, now)),
        restarts=status.restarts.total,
        checkpoint_step=checkpoint.step,
        checkpoint_at=checkpoint.committed_at,
        devices=resolved.slots * resolved.ranks_per_slot if resolved else None,
        holds_devices=status.state in HOLDING_STATES,
    )


def _service_row(entry: Entry, status: ServiceStatus) -> Row:
    row_with = _known_row(entry, SERVICE_HEADLINES)
    per_replica = int(entry.raw["spec"].get("pods", {}).get("devices", 1))
    return row_with(
        restarts=sum(pod.restarts for pod in status.pods),
        devices=per_replica * status.replicas,
        holds_devices=status.replicas > 0,
        ready=status.ready_replicas,
        replicas=status.replicas,
        url=status.url,
    )


def _headline(conditions: Iterable[Condition], wanted: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """(reason, message) of the first of the wanted types and statuses that is so."""
    found: dict[tuple[str, str], Condition] = {(c.type, c.status): c for c in conditions}
    condition = next((found[kind, value] for kind, value in wanted if (kind, value) in found), None)
    return (condition.reason, condition.message) if condition else ("", "")


def seconds_until(time: TimeStatus, now: datetime) -> dict[str, float]:
    """Seconds by category, under their wire names, the open interval included."""
    seconds: dict[str, float] = time.seconds.model_dump(by_alias=True)
    if time.open is not None:
        category: Category = time.open.category
        seconds[category.value] += max(0.0, (now - time.open.since).total_seconds())
    return seconds


def goodput_ratio(seconds: dict[str, float]) -> float:
    """Productive seconds over all seconds of the job's life."""
    total = sum(seconds.values())
    return round(seconds["productive"] / total, 4) if total else 0.0


def finite(value: float | None) -> float | None:
    """The value, or None for NaN and infinity, which JSON and charts lack."""
    return value if value is not None and math.isfinite(value) else None
