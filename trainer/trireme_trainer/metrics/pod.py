"""What one agent exports: facts of the whole job where it is slot 0's, and of its own ranks."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from trireme.metrics import Metric
from trireme.protocol import CheckpointReport, JobIdentity, Progress, Section
from trireme_trainer.agent.messages import ProgressEvent
from trireme_trainer.metrics import definitions
from trireme_trainer.metrics.devices import DeviceCollector
from trireme_trainer.metrics.parts import CHECKPOINT, VALIDATION

_REWARDS = "rewards/"
_PHASES = ("start", "validation")


class PodMetrics:
    """Metrics of one pod."""

    def __init__(self, job: JobIdentity, slot: int) -> None:
        self.registry = CollectorRegistry()
        self._labels = (job.namespace, job.name, job.kind)
        self._slot = slot
        self._ranks_alive = self._gauge(definitions.RANKS_ALIVE)
        self._peak_memory = self._gauge(definitions.PEAK_MEMORY)
        self._busy = self._gauge(definitions.BUSY_SECONDS)
        self._skew = self._gauge(definitions.SKEW_SECONDS)
        self._failures = definitions.CHECKPOINT_FAILURES.counter(self.registry)
        self._job = JobMetrics(self.registry, self._labels) if slot == 0 else None
        if (devices := DeviceCollector.open(self._labels)) is not None:
            self.registry.register(devices)

    def _gauge(self, metric: Metric) -> Gauge:
        return metric.gauge(self.registry)

    def serve(self, address: str, port: int) -> None:
        """Answer on address:port from a thread. Raises OSError."""
        start_http_server(port, addr=address, registry=self.registry)

    def attempt(self, *, resumes: bool) -> None:
        """An attempt begins, from a checkpoint or from the start; what is told of ranks was another one's."""
        for gauge in (self._busy, self._skew, self._peak_memory):
            gauge.clear()
        if self._job is not None:
            self._job.attempt(resumes=resumes)

    def ranks_alive(self, count: Callable[[], int]) -> None:
        """Who is asked at each scrape how many ranks of the pod run."""
        self._ranks_alive.labels(*self._labels).set_function(count)

    def progress(self, rank: int, event: ProgressEvent, *, first: bool) -> None:
        """A rank completed a step; `first`: it is the pod's first rank, which speaks for the job."""
        labels = (*self._labels, str(rank))
        if event.peak_memory_bytes:
            self._peak_memory.labels(*labels).set(event.peak_memory_bytes)
        if event.busy_seconds is not None:
            self._busy.labels(*labels).set(event.busy_seconds)
        if event.skew_seconds is not None:
            self._skew.labels(*labels).set(event.skew_seconds)
        if first and self._job is not None:
            self._job.step(event)

    def section(self, section: Section, seconds: float) -> None:
        """The pod's first rank spent this long in a section that is over."""
        if self._job is not None:
            self._job.section(section, seconds)

    def save_failed(self, reason: str) -> None:
        """A save failed, or a try to bring one into the store."""
        self._failures.labels(*self._labels, reason).inc()

    def checkpoints(self, report: CheckpointReport) -> None:
        """The state of the saves."""
        if self._job is not None:
            self._job.checkpoints(report)


class JobMetrics:
    """Facts of the whole job, for slot 0's agent to tell."""

    def __init__(self, registry: CollectorRegistry, labels: tuple[str, ...]) -> None:
        self._labels = labels
        self._tokens_seen: int | None = None
        self._committed: set[str] = set()
        self._resumes = False
        self._gauges = {
            metric: metric.gauge(registry)
            for metric in (
                definitions.LOSS,
                definitions.VALIDATION_LOSS,
                definitions.LEARNING_RATE,
                definitions.GRAD_NORM,
                definitions.STEP,
                definitions.THROUGHPUT,
                definitions.TFLOPS,
                definitions.BEST_VALIDATION_LOSS,
                *definitions.MEASURES.values(),
            )
        }
        self._mfu = definitions.MFU.gauge(registry)
        self._reward_part = definitions.REWARD_PART.gauge(registry)
        self._tokens = definitions.TOKENS.counter(registry)
        self._step_seconds = definitions.STEP_SECONDS.histogram(registry)
        self._part_seconds = definitions.PART_SECONDS.histogram(registry)
        self._stall = definitions.STALL_SECONDS.histogram(registry)
        self._upload = definitions.UPLOAD_SECONDS.histogram(registry)
        self._restore = definitions.RESTORE_SECONDS.histogram(registry)
        self._bytes = definitions.CHECKPOINT_BYTES.gauge(registry)

    def attempt(self, *, resumes: bool) -> None:
        """An attempt begins."""
        self._resumes = resumes
        # How many tokens lie behind a resume point is known with the first step after it.
        self._tokens_seen = None if resumes else 0

    def step(self, event: ProgressEvent) -> None:
        """A step was completed, or with `completed_at` 0 told once more with a later validation."""
        progress = event.progress
        for metric, value in (
            (definitions.LOSS, progress.loss),
            (definitions.VALIDATION_LOSS, progress.validation_loss),
            (definitions.LEARNING_RATE, progress.learning_rate),
            (definitions.GRAD_NORM, progress.grad_norm),
            (definitions.STEP, progress.step),
            (definitions.THROUGHPUT, progress.tokens_per_second),
            (definitions.TFLOPS, progress.tflops_per_device),
            (definitions.BEST_VALIDATION_LOSS, progress.metrics.get("best/loss")),
        ):
            self._set(metric, value)
        if progress.mfu is not None:
            self._mfu.labels(*self._labels, progress.mfu_basis or "unknown").set(progress.mfu)
        self._measures(progress)
        if event.completed_at:
            self._durations(event)
        if self._tokens_seen is not None and progress.tokens > self._tokens_seen:
            self._tokens.labels(*self._labels).inc(progress.tokens - self._tokens_seen)
        self._tokens_seen = progress.tokens

    def _set(self, metric: Metric, value: float | None, *more: str) -> None:
        if value is not None:
            self._gauges[metric].labels(*self._labels, *more).set(value)

    def _durations(self, event: ProgressEvent) -> None:
        if event.progress.step_seconds is not None:
            self._step_seconds.labels(*self._labels).observe(event.progress.step_seconds)
        for part, seconds in event.part_seconds.items():
            if part in definitions.PARTS:
                self._part_seconds.labels(*self._labels, part).observe(seconds)

    def _measures(self, progress: Progress) -> None:
        """Those that have a name among the metrics; which others an algorithm brings, a series must not depend on."""
        for name, value in progress.metrics.items():
            phase, _, rest = name.partition("/")
            phase, measure = (phase, rest) if phase in _PHASES else ("train", name)
            if measure in definitions.MEASURES:
                self._set(definitions.MEASURES[measure], value, phase)
            elif measure.startswith(_REWARDS):
                self._reward_part.labels(*self._labels, measure.removeprefix(_REWARDS), phase).set(value)

    def section(self, section: Section, seconds: float) -> None:
        """The first rank spent this long in a section that is over."""
        match section:
            case Section.SAVE:
                self._stall.labels(*self._labels).observe(seconds)
                self._part_seconds.labels(*self._labels, CHECKPOINT).observe(seconds)
            case Section.EVALUATE:
                self._part_seconds.labels(*self._labels, VALIDATION).observe(seconds)
            case Section.RESTORE if self._resumes:
                self._restore.labels(*self._labels).observe(seconds)

    def checkpoints(self, report: CheckpointReport) -> None:
        """What was committed."""
        for fact in reversed(report.committed):
            if fact.uri not in self._committed:
                self._upload.labels(*self._labels).observe(fact.upload_seconds)
                self._bytes.labels(*self._labels).set(fact.bytes)
        self._committed = {fact.uri for fact in report.committed}
