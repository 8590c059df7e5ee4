"""Training jobs: one pass of observe, decide, apply, and what is told of them as metrics."""

import time

from trireme.resources.status import Category, JobState
from trireme_operator import metrics
from trireme_operator.apply.executor import Executor
from trireme_operator.decide import Decision, JobView, decide
from trireme_operator.observe.queue import JobKey
from trireme_operator.observe.world import World


class JobController:
    """Looks after the jobs of all kinds."""

    def __init__(self, world: World, executor: Executor) -> None:
        self._world = world
        self._executor = executor

    async def reconcile(self, key: JobKey) -> float | None:
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
