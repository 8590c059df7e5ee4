"""What the page shows, as JSON: selected facts of the status, never the spec, and nothing of any Secret."""

import time
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from threading import Lock
from typing import Any

from pydantic.alias_generators import to_camel
from urllib3.exceptions import HTTPError

from trireme.resources.inference_status import ServiceStatus
from trireme.resources.status import JobStatus
from trireme_cli.cluster import Cluster, ClusterError
from trireme_cli.dashboard.curves import DRAWN_POINTS, LiveCurve, Point, StoredCurve, columns, split, thin
from trireme_cli.jobs import Job
from trireme_cli.overview import Entry, Overview, Row, read_overview, row_of, rows, seconds_until
from trireme_cli.store import JobStore, StoreError, open_store

Json = dict[str, Any]
CURVE_SECONDS = 10.0
"""How often the store is asked for the steps of a job that somebody looks at."""
CHECKPOINTS_SECONDS = 60.0
"""How often it is asked which checkpoints it keeps: that lists every one of their files."""


class Unknown(Exception):
    """No such object; the message names it."""


class Facts:
    """Reads a cluster for any number of pages: one list request per kind and interval, none while nobody asks."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str | None,
        interval: float,
        store_of: Callable[[Cluster, Job], JobStore] = open_store,
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._interval = interval
        self._store_of = store_of
        self._lock = Lock()
        self._overview = Overview(())
        self._read_at = float("-inf")
        self._as_of: datetime | None = None
        self._trouble = ""
        self._curves: dict[str, _JobCurves] = {}

    def overview(self) -> Json:
        """All rows, and what could not be read."""
        with self._lock:
            self._refresh()
            now = datetime.now(UTC)
            return {
                **self._heading(now),
                "interval": self._interval,
                "namespace": self._namespace,
                "rows": [row_json(row) for row in rows(self._overview.entries, now)],
            }

    def detail(self, plural: str, namespace: str, name: str) -> Json:
        """All that the page shows of one object. Raises Unknown."""
        with self._lock:
            self._refresh()
            wanted = (plural, namespace, name)
            entry = next((e for e in self._overview.entries if (e.type.plural, e.namespace, e.name) == wanted), None)
            if entry is None:
                raise Unknown(f"no {plural}/{name} in namespace {namespace}")
            now = datetime.now(UTC)
            shared = {
                **self._heading(now),
                "row": row_json(row_of(entry, now)),
                "conditions": _conditions(entry.status),
            }
            if isinstance(entry.status, ServiceStatus):
                return {**shared, "service": _service(entry.status)}
            curves = self._curves[entry.uid]
            job = _job(entry.status, now)
        return {**shared, "job": {**job, **curves.read(entry.status)}}

    def _heading(self, now: datetime) -> Json:
        problems = [*self._overview.problems, *([self._trouble] if self._trouble else [])]
        return {"now": _time(now), "asOf": _time(self._as_of), "problems": problems}

    def _refresh(self) -> None:
        """Read the cluster unless that was done a moment ago. What was read last stays while it does not answer."""
        if time.monotonic() - self._read_at < self._interval:
            return
        try:
            self._overview = read_overview(self._cluster, self._namespace)
            self._as_of, self._trouble = datetime.now(UTC), ""
        except (ClusterError, HTTPError) as error:
            self._trouble = f"the cluster does not answer: {' '.join(str(error).split())}"
            return
        finally:
            self._read_at = time.monotonic()
        jobs = [entry for entry in self._overview.entries if isinstance(entry.status, JobStatus)]
        for entry in jobs:
            if entry.uid not in self._curves:
                self._curves[entry.uid] = _JobCurves(self._cluster, entry, self._store_of)
            assert isinstance(entry.status, JobStatus)
            self._curves[entry.uid].live.note(entry.status)
        for gone in self._curves.keys() - {entry.uid for entry in jobs}:
            del self._curves[gone]


class _JobCurves:
    """The curves of one job; its store is opened when somebody looks."""

    def __init__(self, cluster: Cluster, entry: Entry, store_of: Callable[[Cluster, Job], JobStore]) -> None:
        self._cluster = cluster
        self._job = Job(entry.type, entry.raw)
        self._store_of = store_of
        self._lock = Lock()
        self._stored: StoredCurve | None = None
        self._points: list[Point] = []
        self._checkpoints: list[dict[str, int]] = []
        self._note = ""
        self._curve_at = self._checkpoints_at = float("-inf")
        self.live = LiveCurve()

    def read(self, status: JobStatus) -> Json:
        """The curves as JSON."""
        with self._lock:
            self._refresh()
            kept, lost = split([*self._points, *self.live.after(self._points)])
        progress = status.progress
        ratio = None
        if progress is not None and progress.mfu is not None and progress.tokens_per_second:
            ratio = progress.mfu / progress.tokens_per_second
        return {
            "curve": columns(thin(kept, DRAWN_POINTS), ratio),
            "lost": columns(thin(lost, DRAWN_POINTS), ratio),
            "keptCheckpoints": self._checkpoints,
            "storeNote": self._note,
        }

    def _refresh(self) -> None:
        now = time.monotonic()
        try:
            if now - self._curve_at >= CURVE_SECONDS:
                self._curve_at = now
                self._stored = self._stored or StoredCurve(self._store_of(self._cluster, self._job))
                self._points = self._stored.read()
                self._note = ""
            if self._stored is not None and now - self._checkpoints_at >= CHECKPOINTS_SECONDS:
                self._checkpoints_at = now
                self._checkpoints = self._stored.checkpoints()
        except (ClusterError, StoreError, HTTPError) as error:
            self._stored = None  # credentials may have been changed
            self._note = f"The object store cannot be read: {' '.join(str(error).split())}"


def row_json(row: Row) -> Json:
    """A row under camelCase names, times as ISO 8601."""
    values = {to_camel(field.name): getattr(row, field.name) for field in fields(row)}
    return {name: _time(value) if isinstance(value, datetime) else value for name, value in values.items()}


def _time(at: datetime | None) -> str | None:
    return at.isoformat(timespec="milliseconds") if at is not None else None


def _conditions(status: JobStatus | ServiceStatus) -> list[Json]:
    return [
        condition.model_dump(
            mode="json", by_alias=True, include={"type", "status", "reason", "message", "last_transition_time"}
        )
        for condition in status.conditions
    ]


def _job(status: JobStatus, now: datetime) -> Json:
    """Facts of a job beside its row. Tracebacks stay out: nobody knows what they quote."""
    progress, failure, gang = status.progress, status.failure, status.gang
    restarts = [r.model_dump(mode="json", by_alias=True) for r in status.restarts.history]
    return {
        "attempt": gang.attempt,
        "phase": gang.phase,
        "nodes": [slot.node for slot in gang.slots if slot.node],
        "program": status.resolved.program if status.resolved else None,
        "tokens": progress.tokens if progress else None,
        "validationLoss": progress.validation_loss if progress else None,
        "stepSeconds": progress.step_seconds if progress else None,
        "mfuBasis": progress.mfu_basis if progress else None,
        "metrics": progress.metrics if progress else {},
        "failure": failure.model_dump(
            mode="json", by_alias=True, include={"cause", "attempt", "rank", "node", "step", "message", "at"}
        )
        if failure
        else None,
        "seconds": seconds_until(status.time, now),
        "restarts": restarts,
        "checkpoint": status.checkpoint.model_dump(
            mode="json",
            by_alias=True,
            include={
                "step",
                "attempt",
                "committed_at",
                "bytes",
                "verified",
                "committed_count",
                "upload_seconds",
                "stall_seconds",
                "failing_reason",
            },
        ),
        "modelDigest": status.model.digest if status.model else None,
    }


def _service(status: ServiceStatus) -> Json:
    """Facts of a service beside its row."""
    return {
        "url": status.url,
        "dnsName": status.dns_name,
        "revision": status.serving_revision,
        "targetRevision": status.target.revision if status.target else None,
        "model": status.model.model_dump(mode="json", by_alias=True) if status.model else None,
        "replicas": [pod.model_dump(mode="json", by_alias=True) for pod in status.pods],
    }
