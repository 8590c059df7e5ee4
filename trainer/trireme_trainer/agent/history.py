"""What an attempt tells of its steps, kept for the store: JSON lines, in objects of so many steps each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from trireme.checkpoints.history import StepRecord
from trireme.checkpoints.samples import Sample, SampleRecord
from trireme.protocol import Progress
from trireme.protocol.base import WireModel

SEGMENT_STEPS = 10_000
"""About 2 MB; only the last segment of an attempt is ever stored again."""
SAMPLE_SEGMENT_STEPS = 100
"""About as much, of a few samples a step."""


class StepLines:
    """Grows by lines of each step; `take` says what the store lacks."""

    def __init__(self, attempt: int, segment_steps: int) -> None:
        self.attempt = attempt
        self._segment_steps = segment_steps
        self._lines: dict[int, list[bytes]] = {}
        """segment -> its lines"""
        self._stored: dict[int, int] = {}
        """segment -> lines of it that are in the store"""

    def note(self, step: int, record: WireModel) -> None:
        """Add a line of a step, counted from 1."""
        segment = (step - 1) // self._segment_steps
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


class StepHistory(StepLines):
    """A line for every completed step."""

    def __init__(self, attempt: int, segment_steps: int = SEGMENT_STEPS) -> None:
        super().__init__(attempt, segment_steps)

    def add(self, progress: Progress, completed_at_seconds: float) -> None:
        """Note a completed step; `completed_at_seconds` is Unix time."""
        record = StepRecord(
            step=progress.step,
            attempt=self.attempt,
            loss=progress.loss,
            learning_rate=progress.learning_rate,
            grad_norm=progress.grad_norm,
            seconds=round(progress.step_seconds or 0.0, 6),
            tokens=progress.tokens,
            completed_at=datetime.fromtimestamp(completed_at_seconds, UTC),
        )
        self.note(progress.step, record)


class SampleHistory(StepLines):
    """A line for every sample that a policy is shown to have learned from."""

    def __init__(self, attempt: int, segment_steps: int = SAMPLE_SEGMENT_STEPS) -> None:
        super().__init__(attempt, segment_steps)

    def add(self, samples: Sequence[Sample]) -> None:
        """Note some."""
        for sample in samples:
            self.note(sample.step, SampleRecord(attempt=self.attempt, **sample.model_dump()))
