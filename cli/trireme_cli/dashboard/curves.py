"""Curves of a job over its steps: from the records in the object store, and from the status where these end."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from trireme.checkpoints import parse_step_key
from trireme.checkpoints.history import StepRecord, parse_history
from trireme.resources.status import JobStatus
from trireme_cli.overview import finite
from trireme_cli.store import JobStore

WINDOW_STEPS = 20
"""Speed is over so many steps, as the trainer's own is."""
SEGMENT_POINTS = 1500
DRAWN_POINTS = 1500
LIVE_POINTS = 2000


@dataclass(frozen=True)
class Point:
    """One completed step; None where it is not known or not finite."""

    step: int
    attempt: int
    loss: float | None
    learning_rate: float | None
    grad_norm: float | None
    tokens_per_second: float | None
    at: datetime


def points_of(records: Iterable[StepRecord]) -> list[Point]:
    """The points of one stored object: steps of one attempt, in their order."""
    window: deque[tuple[int, float]] = deque(maxlen=WINDOW_STEPS)
    points: list[Point] = []
    before: StepRecord | None = None
    for record in records:
        if before is not None and record.step == before.step + 1:
            window.append((record.tokens - before.tokens, record.seconds))
        tokens, seconds = sum(t for t, _ in window), sum(s for _, s in window)
        speed = tokens / seconds if seconds > 0 else None
        points.append(
            Point(
                record.step,
                record.attempt,
                finite(record.loss),
                finite(record.learning_rate),
                finite(record.grad_norm),
                speed,
                record.completed_at,
            )
        )
        before = record
    return points


class StoredCurve:
    """What the store holds of one job, read again only where it can have grown."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._segments: dict[str, list[Point]] = {}
        self._complete: set[str] = set()

    def read(self) -> list[Point]:
        """All points, by attempt and step. Raises StoreError."""
        keys = sorted(self._store.list_keys(self._store.keys.histories))
        newest = {key.rpartition("/")[0]: key for key in keys}
        for key in keys:
            if key in self._complete:
                continue
            self._segments[key] = thin(points_of(parse_history(self._store.read(key))), SEGMENT_POINTS)
            if newest[key.rpartition("/")[0]] != key:  # only the last segment of an attempt is ever stored again
                self._complete.add(key)
        found = [point for points in self._segments.values() for point in points]
        return sorted(found, key=lambda p: (p.attempt, p.step))

    def checkpoints(self) -> list[dict[str, int]]:
        """Step and attempt of the checkpoints that the store keeps at present. Raises StoreError."""
        keys = self._store.list_keys(f"{self._store.keys.job_prefix}a")
        found = sorted((parsed[2], parsed[1]) for key in keys if (parsed := parse_step_key(key)))
        return [{"step": step, "attempt": attempt} for step, attempt in found]


class LiveCurve:
    """What the status said at each look: ahead of the store, and all there is where that cannot be read."""

    def __init__(self) -> None:
        self._points: deque[Point] = deque(maxlen=LIVE_POINTS)

    def note(self, status: JobStatus) -> None:
        """Take the status' last completed step."""
        progress, attempt = status.progress, status.gang.attempt
        if progress is None or progress.step == 0 or progress.updated_at is None:
            return
        if self._points and (self._points[-1].attempt, self._points[-1].step) >= (attempt, progress.step):
            return
        self._points.append(
            Point(
                progress.step,
                attempt,
                finite(progress.loss),
                finite(progress.learning_rate),
                finite(progress.grad_norm),
                finite(progress.tokens_per_second),
                progress.updated_at,
            )
        )

    def after(self, stored: Sequence[Point]) -> list[Point]:
        """The points that are newer than all stored ones."""
        last = (stored[-1].attempt, stored[-1].step) if stored else (0, 0)
        return [point for point in self._points if (point.attempt, point.step) > last]


def split(points: Sequence[Point]) -> tuple[list[Point], list[Point]]:
    """(the run as if nothing had been computed twice, steps that a newer attempt computed again)."""
    first: dict[int, int] = {}
    for point in points:
        first[point.attempt] = min(point.step, first.get(point.attempt, point.step))
    again_from = {
        attempt: min((step for newer, step in first.items() if newer > attempt), default=None) for attempt in first
    }
    kept: list[Point] = []
    lost: list[Point] = []
    for point in points:
        limit = again_from[point.attempt]
        (kept if limit is None or point.step < limit else lost).append(point)
    return sorted(kept, key=lambda p: p.step), sorted(lost, key=lambda p: (p.attempt, p.step))


def thin(points: Sequence[Point], limit: int) -> list[Point]:
    """At most so many points (10 or more), in their order; the extremes of each stretch of them stay."""
    if len(points) <= limit:
        return list(points)
    orders = (
        [p.loss if p.loss is not None else float("inf") for p in points],
        [-p.loss if p.loss is not None else float("inf") for p in points],
        [-p.grad_norm if p.grad_norm is not None else float("inf") for p in points],
    )
    stretches = (limit - 2) // (len(orders) + 1)
    kept: set[int] = {0, len(points) - 1}
    for number in range(stretches):
        inside = range(number * len(points) // stretches, (number + 1) * len(points) // stretches)
        kept |= {inside[0], *(min(inside, key=order.__getitem__) for order in orders)}
    return [points[i] for i in sorted(kept)]


def columns(points: Sequence[Point], mfu_per_speed: float | None) -> dict[str, list[Any]]:
    """Points as JSON, a list per quantity. MFU is tokens per second times a constant of the job."""
    speeds = [p.tokens_per_second for p in points]
    return {
        "step": [p.step for p in points],
        "loss": [p.loss for p in points],
        "learningRate": [p.learning_rate for p in points],
        "gradNorm": [p.grad_norm for p in points],
        "tokensPerSecond": speeds,
        "mfu": [s * mfu_per_speed if s is not None and mfu_per_speed is not None else None for s in speeds],
    }
