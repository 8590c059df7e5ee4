"""The loop: a key from the queue, and the pass of its kind's controller: observe, decide, apply."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from trireme_operator.apply.api import ApiError
from trireme_operator.apply.executor import NotLeading, Stale
from trireme_operator.metrics import INSTRUMENTS
from trireme_operator.observe.queue import JobKey, WorkQueue
from trireme_operator.observe.views import UnreadableStatus

log = logging.getLogger(__name__)

MAX_BACKOFF_SECONDS = 30.0
STALE_RETRY_SECONDS = 0.2


class Controller(Protocol):
    """Who looks after the objects of a kind."""

    async def reconcile(self, key: JobKey) -> float | None:
        """One pass; returns after how many seconds the next is due, None when only a change can call for one.

        Raises NotLeading, Stale, ApiError or UnreadableStatus.
        """


class Reconciler:
    """Workers that take keys from the queue and hand each to the controller of its kind."""

    def __init__(
        self,
        controllers: Mapping[str, Controller],
        queue: WorkQueue,
        *,
        leading: Callable[[], bool],
        synced: Callable[[str], bool],
        stalled: Callable[[], bool],
    ) -> None:
        self._controllers = controllers
        self._queue = queue
        self._leading = leading
        self._synced = synced  # whether all that matters to a kind was listed once
        self._stalled = stalled  # whether this process has not run for a while
        self._failures: dict[JobKey, int] = {}

    async def run(self, workers: int) -> None:
        """Work for ever."""
        await asyncio.gather(*(self._work() for _ in range(workers)))

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            try:
                await self._one(key)
            finally:
                self._queue.done(key)

    async def _one(self, key: JobKey) -> None:
        if not self._leading() or not self._synced(key.kind):
            return  # everything is queued again when leadership begins
        if self._stalled():
            self._queue.add(key, 0.5)
            return
        began = time.monotonic()
        try:
            delay = await self._controllers[key.kind].reconcile(key)
        except NotLeading:
            return
        except Stale as error:
            log.debug("%s", error)
            delay = STALE_RETRY_SECONDS
        except (ApiError, UnreadableStatus) as error:
            delay = self._failed(key, error)
        except Exception as error:  # one job's trouble must not end the worker for all others
            log.exception("%s %s/%s", key.kind, key.namespace, key.name)
            delay = self._failed(key, error)
        else:
            self._failures.pop(key, None)
            self._queue.release(key)
        finally:
            INSTRUMENTS.reconcile_seconds.labels(key.kind).observe(time.monotonic() - began)
        if delay is not None:
            self._queue.add(key, delay)

    def _failed(self, key: JobKey, error: Exception) -> float:
        count = self._failures[key] = self._failures.get(key, 0) + 1
        INSTRUMENTS.reconcile_errors.labels(key.kind, type(error).__name__).inc()
        delay = min(MAX_BACKOFF_SECONDS, 0.2 * 2.0 ** min(count, 10))
        self._queue.hold_back(key, delay)
        log.warning("%s %s/%s, next try in %.1f s: %s", key.kind, key.namespace, key.name, delay, error)
        return delay
