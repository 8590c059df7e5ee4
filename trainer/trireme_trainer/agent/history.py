"""The steps of an attempt, kept for the store: one JSON line each, in objects of SEGMENT_STEPS lines."""

from __future__ import annotations

from datetime import UTC, datetime

from trireme.checkpoints.history import StepRecord
from trireme.protocol import Progress

SEGMENT_STEPS = 10_000
"""About 2 MB; only the last segment of an attempt is ever stored again."""


class StepHistory:
    """Grows by a line per step; `take` says what the store lacks."""

    def __init__(self, attempt: int, segment_steps: int = SEGMENT_STEPS) -> None:
        self._attempt = attempt
        self._segment_steps = segment_steps
        self._lines: dict[int, list[bytes]] = {}
        """segment -> its lines"""
        self._stored: dict[int, int] = {}
        """segment -> lines of it that are in the store"""

    def add(self, progress: Progress, completed_at_seconds: float) -> None:
        """Note a completed step; `completed_at_seconds` is Unix time."""
        record = StepRecord(
            step=progress.step,
            attempt=self._attempt,
            loss=progress.loss,
            learning_rate=progress.learning_rate,
            grad_norm=progress.grad_norm,
            seconds=round(progress.step_seconds or 0.0, 6),
            tokens=progress.tokens,
            completed_at=datetime.fromtimestamp(completed_at_seconds, UTC),
        )
        segment = (progress.step - 1) // self._segment_steps
        self._lines.setdefault(segment, []).append(record.to_json().encode() + b"\n")

    def take(self) -> list[tuple[int, list[bytes]]]:
        """(segment, all its lines) of every segment that the store lacks or has in part."""
        return [
            (segment, list(lines))
            for segment, lines in sorted(self._lines.items())
            if len(lines) > self._stored.get(segment, 0)
        ]

    def stored(self, segment: int, lines: int) -> None:
        """The store has so many lines of a segment; one that is complete needs no memory any more."""
        self._stored[segment] = lines
        if segment < max(self._lines) and lines == len(self._lines.get(segment, ())):
            del self._lines[segment]
