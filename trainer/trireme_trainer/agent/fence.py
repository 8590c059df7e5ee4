"""When an agent must stop its ranks by itself: it is alone, and others may have gone on without it.

Alone means no contact with the operator and none with the gang: for slots above 0 with slot 0's agent, for slot 0 with
any other slot's agent. An operator outage alone stops nothing, and a job of one slot has no gang to lose: its second
writer, if ever there is one, is made harmless by the commit rule.
"""

from __future__ import annotations


class Fence:
    """Remembers the last contacts; times are seconds of one monotonic clock."""

    def __init__(self, slots: int, now: float) -> None:
        self._slots = slots
        self._operator = now
        self._gang = now

    def heard_operator(self, now: float) -> None:
        """The operator called."""
        self._operator = now

    def heard_gang(self, now: float) -> None:
        """Slot 0 answered, or (on slot 0) another slot called."""
        self._gang = now

    def operator_silent_seconds(self, now: float) -> float:
        """Since the operator last called."""
        return now - self._operator

    def gang_silent_seconds(self, now: float) -> float:
        """Since the last contact with the gang; 0 for a job of one slot."""
        return now - self._gang if self._slots > 1 else 0.0

    def expired(self, now: float, fence_seconds: float) -> bool:
        """Whether the ranks must stop."""
        if self._slots == 1:
            return False
        return min(self.operator_silent_seconds(now), self.gang_silent_seconds(now)) >= fence_seconds
