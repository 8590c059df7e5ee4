"""When the demo kills a node."""

import random

from trireme.protocol import Report

EARLIEST = 0.30
"""Fractions of the run. The step is drawn up to LATEST_DRAWN; a good moment is waited for until LAST_CALL."""
LATEST_DRAWN = 0.60
LAST_CALL = 0.65


class FaultPlan:
    """A random step between 30% and 70% of the run, not on a checkpoint boundary."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._step: int | None = None

    def is_due(self, report: Report) -> bool:
        """Whether the node is to be killed now.

        Best is a moment with a checkpoint to resume from and none under way, so that no more than one interval is
        lost. A computer so fast, or a store so slow, that it does not come in time loses more steps.
        """
        progress, saves = report.progress, report.checkpoint
        if progress is None:
            return False
        if self._step is None:
            first = int(progress.total_steps * EARLIEST) + 1
            self._step = self._rng.randint(first, max(first, int(progress.total_steps * LATEST_DRAWN)))
        committed = saves.last_committed.step if saves.last_committed else 0
        if progress.step < self._step or progress.step <= max(committed, saves.in_progress_step or 0):
            return False
        calm = committed > 0 and saves.in_progress_step is None
        return calm or progress.step >= progress.total_steps * LAST_CALL
