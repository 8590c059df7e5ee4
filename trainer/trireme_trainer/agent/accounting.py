"""Where the seconds of an attempt went, as one node sees them."""

from __future__ import annotations

from trireme.protocol import Section

STARTUP, RESTORE, PRODUCTIVE, RECOMPUTE, STALL = "startup", "restore", "productive", "recompute", "checkpointStall"


def category_of(section: Section, step: int, recompute_until_step: int) -> str:
    """The category of a section entered after `step` completed steps."""
    if section is Section.START:
        return STARTUP
    if section is Section.RESTORE:
        return RESTORE
    if section is Section.SAVE:
        return STALL
    # Whatever is done below that step, an older attempt had done before.
    return RECOMPUTE if step < recompute_until_step else PRODUCTIVE


class CategoryClock:
    """Shares out elapsed time over categories: exactly one is open from start to stop."""

    def __init__(self, now: float) -> None:
        self._totals: dict[str, float] = {STARTUP: 0.0, RESTORE: 0.0, PRODUCTIVE: 0.0, RECOMPUTE: 0.0, STALL: 0.0}
        self._open: str | None = STARTUP
        self._since = now

    def enter(self, category: str, now: float) -> None:
        """Close the open category and open another."""
        if self._open is not None:
            self._totals[self._open] += now - self._since
            self._open, self._since = category, now

    def stop(self, now: float) -> None:
        """Close the open category for good."""
        if self._open is not None:
            self.enter(self._open, now)
            self._open = None

    def totals(self, now: float) -> dict[str, float]:
        """Seconds in every category up to now."""
        result = dict(self._totals)
        if self._open is not None:
            result[self._open] += now - self._since
        return result
