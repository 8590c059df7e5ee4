"""The loop: a key from the queue, observe, decide, apply."""

import asyncio
import logging
import time
from collections.abc import Callable

from trireme.resources.status import Category, JobState
from trireme_operator import metrics
from trireme_operator.apply.api import ApiError
from trireme_operator.apply.executor import Executor, NotLeading, Stale
from trireme_operator.decide import Decision, JobView, decide
from trireme_operator.observe.poller import Poller
from trireme_operator.observe.queue import JobKey, WorkQueue
from trireme_operator.observe.views import UnreadableStatus
from trireme_operator.observe.world import World

log = logging.getLogger(__name__)

MAX_BACKOFF_SECONDS = 30.0
STALE_RETRY_SECONDS = 0.2


class Reconciler:
    """Workers that take keys from the queue."""

    def __init__(
        self, world: World, queue: WorkQueue, executor: Executor, poller: Poller, leading: Callable[[], bool]
    ) -> None:
        self._world = world
        self._queue = queue
        self._executor = executor
        self._poller = poller
        self._leading = leading
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
        if not self._leading() or not self._world.synced:
            return  # everything is queued again when leadership begins
        if self._poller.stalled():
            self._queue.add(key, 0.5)
            return
        began = time.monotonic()
        try:
            delay = await self._pass(key)
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
            metrics.RECONCILE_SECONDS.labels(key.kind).observe(time.monotonic() - began)
        if delay is not None:
            self._queue.add(key, delay)

    def _failed(self, key: JobKey, error: Exception) -> float:
        count = self._failures[key] = self._failures.get(key, 0) + 1
        metrics.RECONCILE_ERRORS.labels(key.kind, type(error).__name__).inc()
        delay = min(MAX_BACKOFF_SECONDS, 0.2 * 2.0 ** min(count, 10))
        self._queue.hold_back(key, delay)
        log.warning("%s %s/%s, next try in %.1f s: %s", key.kind, key.namespace, key.name, delay, error)
        return delay

    async def _pass(self, key: JobKey) -> float | None:
        """One pass; returns after how many seconds the next is due, None when only a change can call for one."""
        observed, raw = self._world.observe(key), self._world.raw_job(key)
        if observed is None or raw is None:
            forget(key)
            return None
        kind = self._world.kinds[key.kind]
        decision: Decision = decide(observed, kind)
        publish(observed.job)
        await self._executor.execute(observed, raw, kind, decision)
        return decision.requeue_seconds


def publish(job: JobView) -> None:
    """A job's state as metrics."""
    labels, status = (job.kind, job.namespace, job.name), job.status
    for state in JobState:
        metrics.JOB_STATE.labels(*labels, state.value).set(1.0 if state == status.state else 0.0)
    metrics.JOB_ATTEMPT.labels(*labels).set(status.gang.attempt)
    if status.progress is not None:
        metrics.JOB_STEP.labels(*labels).set(status.progress.step)
    for entry in status.restarts.by_cause:
        metrics.JOB_RESTARTS.labels(*labels, entry.cause).set(entry.count)
    for name, seconds in status.time.seconds.model_dump(by_alias=True).items():
        extra = 0.0
        if status.time.open is not None and status.time.open.category.value == name:
            extra = max(0.0, time.time() - status.time.open.since.timestamp())
        metrics.JOB_SECONDS.labels(*labels, name).set(seconds + extra)


def forget(key: JobKey) -> None:
    """Remove the metrics of a job that is gone."""
    labels = (key.kind, key.namespace, key.name)
    causes = [sample.labels["cause"] for m in metrics.JOB_RESTARTS.collect() for sample in m.samples]
    for gauge, values in (
        (metrics.JOB_STATE, [state.value for state in JobState]),
        (metrics.JOB_SECONDS, [category.value for category in Category]),
        (metrics.JOB_RESTARTS, sorted(set(causes))),
    ):
        for value in values:
            gauge.remove_by_labels(dict(zip(gauge._labelnames, (*labels, value), strict=True)))
    for plain in (metrics.JOB_ATTEMPT, metrics.JOB_STEP):
        plain.remove_by_labels(dict(zip(plain._labelnames, labels, strict=True)))
