"""The record of every step: what is stored, stored again, and read back."""

from __future__ import annotations

from datetime import UTC, datetime

from trireme.checkpoints.history import StepRecord, newest_attempt_wins, parse_history
from trireme.protocol import Progress
from trireme_trainer.agent.history import StepHistory


def grown(history: StepHistory, first: int, last: int) -> None:
    for step in range(first, last + 1):
        progress = Progress(step=step, total_steps=100, tokens=step * 8, loss=1.0 / step, step_seconds=0.25)
        history.add(progress, 1_700_000_000.0 + step)


def test_a_step_is_read_back_as_it_was_noted() -> None:
    history = StepHistory(attempt=2)
    grown(history, 5, 5)
    ((_, lines),) = history.take()
    (record,) = parse_history(b"".join(lines))
    at = datetime.fromtimestamp(1_700_000_005.0, UTC)
    assert record == StepRecord(step=5, attempt=2, loss=0.2, seconds=0.25, tokens=40, completed_at=at)


def test_only_what_the_store_lacks_is_stored_again() -> None:
    history = StepHistory(attempt=1, segment_steps=10)
    grown(history, 1, 12)
    for segment, lines in history.take():
        history.stored(segment, len(lines))
    assert history.take() == []
    grown(history, 13, 14)
    ((segment, lines),) = history.take()
    assert segment == 1
    assert [r.step for r in parse_history(b"".join(lines))] == [11, 12, 13, 14]


def test_a_failed_upload_is_tried_again_with_what_came_since() -> None:
    history = StepHistory(attempt=1, segment_steps=10)
    grown(history, 9, 11)
    before = history.take()
    grown(history, 12, 12)
    assert [len(lines) for _, lines in before] == [2, 1]
    assert [len(lines) for _, lines in history.take()] == [2, 2]


def test_a_step_computed_again_counts_as_its_newest_attempt_has_it() -> None:
    at = datetime.fromtimestamp(0, UTC)
    records = [
        StepRecord(step=step, attempt=attempt, loss=float(attempt), seconds=1, tokens=step, completed_at=at)
        for attempt, steps in ((2, (3, 4, 5)), (1, (1, 2, 3, 4)))
        for step in steps
    ]
    assert [(r.step, r.attempt) for r in newest_attempt_wins(records)] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]
