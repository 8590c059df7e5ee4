"""A queue of object keys: each is worked on by one worker at a time, and again after growing pauses while it fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from trireme_local.informer import Key
from trireme_local.kube import NETWORK_ERRORS, ApiException, is_status

log = logging.getLogger(__name__)

WORKERS = 5
RETRY_SECONDS = 0.05
RETRY_MAX_SECONDS = 30.0


class KeyQueue:
    """Calls `visit` with every added key; a key added during its own visit is visited once more."""

    def __init__(self, name: str, visit: Callable[[Key], Awaitable[None]]) -> None:
        self._name = name
        self._visit = visit
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()
        self._active: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}

    def add(self, key: Key) -> None:
        """Have the key visited soon."""
        if key in self._waiting:
            return
        self._waiting.add(key)
        if key not in self._active:
            self._ready.put_nowait(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Have the key visited in `seconds`, or earlier where that has been asked for: a visit may ask again."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= loop.time() + seconds:
                return
            timer.cancel()
        self._timers[key] = loop.call_later(max(0.0, seconds), self._due, key)

    def _due(self, key: Key) -> None:
        del self._timers[key]
        self.add(key)

    async def run(self) -> None:
        """Work until cancelled; an error that is not the API server's or the network's ends it."""
        for key in self._active | self._waiting:  # left by a run that failed
            self._waiting.add(key)
            self._ready.put_nowait(key)
        self._active.clear()
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            key = await self._ready.get()
            if key not in self._waiting or key in self._active:
                continue
            self._waiting.discard(key)
            self._active.add(key)
            await self._try(key)
            self._active.discard(key)
            if key in self._waiting:
                self._ready.put_nowait(key)

    async def _try(self, key: Key) -> None:
        try:
            await self._visit(key)
        except (ApiException, *NETWORK_ERRORS) as error:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            # 409: a newer version is on its way here.
            level = logging.DEBUG if is_status(error, 409) else logging.INFO
            log.log(level, "%s %s/%s: %r, trying again", self._name, *key, error)
            self.add_after(key, min(RETRY_SECONDS * 2 ** (failures - 1), RETRY_MAX_SECONDS))
        else:
            self._failures.pop(key, None)
