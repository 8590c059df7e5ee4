"""What is said of jobs, services and the operator's own state, read off at each scrape: nothing that is gone stays."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from prometheus_client.metrics_core import Metric as Family

from trireme.metrics import Metric
from trireme.resources import INFERENCE_SERVICE, SpecError
from trireme.resources.status import TERMINAL_STATES, ConditionType, GangPhase, JobState, JobStatus
from trireme_operator import metrics
from trireme_operator.decide import JobView, timekeeping
from trireme_operator.decide.progress import RUN_PHASES
from trireme_operator.observe.queue import WorkQueue
from trireme_operator.observe.views import UnreadableStatus
from trireme_operator.observe.world import World
from trireme_operator.selfcheck import SelfCheck
from trireme_operator.services.model import ServiceView
from trireme_operator.services.observe import ServiceWorld

AXES = {"tensor": "tensor", "pipeline": "pipeline", "data": "data", "context": "context", "zeroStage": "zero"}
"""Fields of plans that say how work is divided, and what they are called in the label `layout`."""


class Samples:
    """Gathers the series of some metrics in one pass over many objects."""

    def __init__(self, of: Iterable[Metric]) -> None:
        self._found: dict[Metric, list[tuple[tuple[str, ...], float]]] = {metric: [] for metric in of}

    def add(self, metric: Metric, labels: Sequence[str], value: float | None) -> None:
        """One series; None is none."""
        if value is not None:
            self._found[metric].append((tuple(labels), value))

    def families(self) -> Iterator[Family]:
        """As Prometheus' client takes them."""
        for metric, samples in self._found.items():
            yield metric.family(samples)


class HighWater:
    """Keeps counters from falling: by a moment, where an interval is closed as of before the last scrape."""

    def __init__(self) -> None:
        self._highest: dict[str, dict[tuple[str, str], float]] = {}

    def of(self, uid: str, metric: Metric, label: str, value: float) -> float:
        """The value, or a larger one that was told of the same object before."""
        known = self._highest.setdefault(uid, {})
        known[metric.name, label] = highest = max(value, known.get((metric.name, label), 0.0))
        return highest

    def forget_except(self, uids: set[str]) -> None:
        """Drop what belongs to objects that are gone."""
        self._highest = {uid: known for uid, known in self._highest.items() if uid in uids}


class FleetCollector:
    """Jobs, services and devices, while this replica leads: what it knows then is true."""

    def __init__(
        self,
        world: World,
        services: ServiceWorld,
        leading: Callable[[], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._world, self._services, self._leading, self._clock = world, services, leading, clock
        self._counters = HighWater()

    def collect(self) -> list[Family]:
        """All families, without series where another replica leads."""
        samples = Samples([*metrics.JOB_GROUP.metrics, *metrics.SERVICE_GROUP.metrics])
        if self._leading():
            resources: set[str] = set()
            uids: set[str] = set()
            for key in self._world.job_keys():
                try:
                    job = self._world.job(key)
                except UnreadableStatus:
                    continue
                if job is not None:
                    uids.add(job.uid)
                    self._job(samples, job, resources)
            self._counters.forget_except(uids)
            for key in self._services.service_keys():
                try:
                    service = self._services.service(key)
                except UnreadableStatus:
                    continue
                if service is not None:
                    self._service(samples, service, resources)
            self._devices(samples, resources)
        return list(samples.families())

    # -- jobs

    def _job(self, samples: Samples, job: JobView, resources: set[str]) -> None:
        labels, status = (job.namespace, job.name, job.kind), job.status
        samples.add(metrics.JOB_STATE, (*labels, status.state), 1.0)
        for metric, reason in ((metrics.JOB_WAITING, waiting_for(status)), (metrics.JOB_FAILED, failed_for(status))):
            if reason:
                samples.add(metric, (*labels, reason), 1.0)
        samples.add(metrics.JOB_CREATED, labels, job.created)
        samples.add(metrics.JOB_ATTEMPT, labels, status.gang.attempt)
        if status.progress is not None:
            samples.add(metrics.JOB_STEP, labels, status.progress.step)
            samples.add(metrics.JOB_TOTAL_STEPS, labels, status.progress.total_steps)
            samples.add(metrics.JOB_TOKENS, labels, status.progress.tokens)
        for entry in status.restarts.by_cause:
            count = self._counters.of(job.uid, metrics.JOB_RESTARTS, entry.cause, entry.count)
            samples.add(metrics.JOB_RESTARTS, (*labels, entry.cause), count)
        self._time(samples, job, labels)
        self._checkpoint(samples, job, labels)
        self._resolved(samples, job, labels, resources)

    def _time(self, samples: Samples, job: JobView, labels: tuple[str, ...]) -> None:
        """While ranks run, what the open interval will count for is not known before the agents report it."""
        time, now = job.status.time, self._clock()
        seconds = time.seconds if job.status.gang.phase in RUN_PHASES else timekeeping.up_to(time, now)
        for category, value in seconds.model_dump(by_alias=True).items():
            value = self._counters.of(job.uid, metrics.JOB_SECONDS, category, value)
            samples.add(metrics.JOB_SECONDS, (*labels, category), value)
        samples.add(metrics.JOB_GOODPUT, labels, seconds.goodput_ratio())
        lost = {entry.cause: entry.seconds for entry in time.lost}
        if (fault := timekeeping.unrecovered(job.status)) is not None:
            since = max(0.0, seconds.lost() - fault.lost_before) if fault.lost_before is not None else 0.0
            lost[fault.cause] = lost.get(fault.cause, 0.0) + since
        for cause, value in lost.items():
            value = self._counters.of(job.uid, metrics.JOB_LOST_SECONDS, cause, value)
            samples.add(metrics.JOB_LOST_SECONDS, (*labels, cause), value)

    def _checkpoint(self, samples: Samples, job: JobView, labels: tuple[str, ...]) -> None:
        saved = job.status.checkpoint
        if saved.committed_at is not None:
            samples.add(metrics.CHECKPOINT_SUCCESS, labels, saved.committed_at.timestamp())
        samples.add(metrics.CHECKPOINT_STEP, labels, saved.step)
        commits = self._counters.of(job.uid, metrics.CHECKPOINT_COMMITS, "", saved.committed_count)
        samples.add(metrics.CHECKPOINT_COMMITS, labels, commits)
        if saved.failing_reason:
            samples.add(metrics.CHECKPOINT_FAILING, (*labels, saved.failing_reason), 1.0)

    def _resolved(self, samples: Samples, job: JobView, labels: tuple[str, ...], resources: set[str]) -> None:
        resolved, spec = job.status.resolved, self._world.accepted_spec(job)
        if resolved is None or spec is None:
            return
        model = self._world.kinds[job.kind].model_name(spec)
        what = (model, str(resolved.plan.get("engine", "")), layout(resolved.plan), resolved.image)
        samples.add(metrics.JOB_INFO, (*labels, *what), 1.0)
        device = spec.workers.accelerator.requested_resource
        if device is None:
            return
        resources.add(device)
        wants = job.status.state not in TERMINAL_STATES and job.status.gang.phase != GangPhase.STOPPED
        requested = resolved.slots * resolved.ranks_per_slot if wants else 0
        samples.add(metrics.JOB_DEVICES_REQUESTED, (*labels, device), requested)
        bound = sum(1 for pod in self._world.pods_of(job) if pod.node and not pod.finished)
        samples.add(metrics.JOB_DEVICES_ALLOCATED, (*labels, device), bound * resolved.ranks_per_slot)

    # -- services

    def _service(self, samples: Samples, service: ServiceView, resources: set[str]) -> None:
        labels, status = (service.namespace, service.name), service.status
        samples.add(metrics.SERVICE_STATE, (*labels, status.state), 1.0)
        samples.add(metrics.SERVICE_READY, labels, status.ready_replicas)
        try:
            spec = INFERENCE_SERVICE.parse_stored(service.spec)
        except SpecError:
            return
        image = status.target.image if status.target else spec.pods.image or ""
        samples.add(metrics.SERVICE_INFO, (*labels, INFERENCE_SERVICE.model_name(spec), image), 1.0)
        samples.add(metrics.SERVICE_WANTED, labels, spec.replicas)
        for adapter in spec.adapters:
            having = sum(1 for pod in status.pods if any(loaded.name == adapter.name for loaded in pod.adapters))
            samples.add(metrics.SERVICE_ADAPTERS, (*labels, adapter.name), having)
        device = spec.pods.accelerator.requested_resource
        if device is None or spec.pods.accelerator.kind == "cpu":
            return
        resources.add(device)
        bound = [p for p in self._services.pods_of(service.uid, service.namespace) if p.node and not p.finished]
        samples.add(metrics.SERVICE_DEVICES_REQUESTED, (*labels, device), spec.replicas * spec.pods.devices)
        samples.add(metrics.SERVICE_DEVICES_ALLOCATED, (*labels, device), len(bound) * spec.pods.devices)

    def _devices(self, samples: Samples, resources: set[str]) -> None:
        nodes = self._world.node_views()
        for resource in sorted(resources) if nodes is not None else ():
            total = sum(node.allocatable.get(resource, 0) for node in nodes or () if node.ready)
            samples.add(metrics.CLUSTER_DEVICES, (resource,), total / 1000)


class OwnCollector:
    """The state of this process."""

    def __init__(self, queue: WorkQueue, check: SelfCheck, ready: Callable[[], bool]) -> None:
        self._queue, self._check, self._ready = queue, check, ready

    def collect(self) -> list[Family]:
        """All families."""
        depth, age = self._queue.waiting()
        missing = {(p.group, p.resource, p.verb) for p in self._check.missing}
        return [
            metrics.QUEUE_DEPTH.family([((), depth)]),
            metrics.QUEUE_AGE.family([((), age)]),
            metrics.READY.family([((), float(self._ready()))]),
            metrics.MISSING_PERMISSION.family((labels, 1.0) for labels in sorted(missing)),
            metrics.CRD_MISMATCH.family(((crd,), float(differs)) for crd, differs in self._check.mismatched.items()),
            metrics.BUILD_INFO.family([((version("trireme"),), 1.0)]),
        ]


def waiting_for(status: JobStatus) -> str | None:
    """What a job that may run is kept from running by: the reason of its condition, or None where nothing does."""
    if status.state in TERMINAL_STATES | {JobState.REJECTED, JobState.SUSPENDING, JobState.SUSPENDED}:
        return None
    found = (status.condition(kind) for kind in (ConditionType.INPUTS_READY, ConditionType.SCHEDULED))
    return next((condition.reason for condition in found if condition and condition.status == "False"), None)


def failed_for(status: JobStatus) -> str | None:
    """Why a job has failed; None where it has not."""
    failed = status.condition(ConditionType.FAILED)
    return failed.reason if failed is not None and failed.status == "True" else None


def layout(plan: Mapping[str, Any]) -> str:
    """Sizes of a plan's axes, without those that are not divided by ZeRO at all."""
    sizes = [(name, plan[axis]) for axis, name in AXES.items() if axis in plan]
    return ",".join(f"{name}={size}" for name, size in sizes if name != "zero" or size)
