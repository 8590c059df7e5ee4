"""The one keyed work queue: a key waits at most once, and is never handled twice at the same time."""

import asyncio
import contextlib
import heapq
import time
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class JobKey:
    """A job."""

    kind: str
    namespace: str
    name: str


class WorkQueue:
    """Keys with the time at which they are due; adding a key again can only make it due earlier."""

    def __init__(self) -> None:
        self._due: dict[JobKey, float] = {}
        self._heap: list[tuple[float, JobKey]] = []
        self._busy: set[JobKey] = set()
        self._again: dict[JobKey, float] = {}
        self._again_routine: dict[JobKey, float] = {}
        self._not_before: dict[JobKey, float] = {}
        self._wake = asyncio.Event()

    def add(self, key: JobKey, delay_seconds: float = 0.0, *, routine: bool = False) -> None:
        """Have a key handled after a delay.

        What comes by itself again and again, like the agents' answers, is `routine`: it waits for a failing key's next
        try, where real news does not.
        """
        due = time.monotonic() + delay_seconds
        if key in self._busy:
            again = self._again_routine if routine else self._again
            again[key] = min(due, again.get(key, due))
            return
        if routine:
            due = max(due, self._not_before.get(key, due))
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, key))
        self._wake.set()

    async def get(self) -> JobKey:
        """The next key that is due; `done` must follow."""
        while True:
            now = time.monotonic()
            while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
                heapq.heappop(self._heap)
            if self._heap and self._heap[0][0] <= now:
                _, key = heapq.heappop(self._heap)
                del self._due[key]
                self._busy.add(key)
                if self._heap:
                    self._wake.set()  # another worker may take the next one
                return key
            self._wake.clear()
            timeout = self._heap[0][0] - now if self._heap else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._wake.wait()

    def done(self, key: JobKey) -> None:
        """A key was handled; what was added in the meantime is due now."""
        self._busy.discard(key)
        for again, routine in ((self._again, False), (self._again_routine, True)):
            due = again.pop(key, None)
            if due is not None:
                self.add(key, max(0.0, due - time.monotonic()), routine=routine)

    def waiting(self) -> tuple[int, float]:
        """(keys that are due and wait for a worker, seconds for which the first of them has waited)."""
        now = time.monotonic()
        waits = [now - due for due in self._due.values() if due <= now]
        return len(waits), max(waits, default=0.0)

    def hold_back(self, key: JobKey, seconds: float) -> None:
        """After a failure: nothing routine has the key handled earlier than this."""
        self._not_before[key] = time.monotonic() + seconds

    def release(self, key: JobKey) -> None:
        """The key was handled without a failure, or is gone."""
        self._not_before.pop(key, None)
