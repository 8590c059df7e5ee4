"""The pod's Prometheus endpoint: training facts in base units, labelled with the job."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from trireme.protocol import CheckpointReport, JobIdentity, Progress
from trireme_trainer.agent.messages import SavedEvent

LABELS = ("namespace", "job", "kind")
_STEP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)


class TrainingMetrics:
    """Metrics of one pod."""

    def __init__(self, job: JobIdentity) -> None:
        self.registry = CollectorRegistry()
        self._job = (job.namespace, job.name, job.kind)
        self._tokens_seen: int | None = None
        self._facts: set[int] = set()
        self._loss = self._gauge("trireme_train_loss", "Mean cross entropy in nats of the last step")
        self._validation = self._gauge("trireme_validation_loss", "Mean cross entropy in nats of the last validation")
        self._rate = self._gauge("trireme_train_learning_rate", "Learning rate of the last step")
        self._norm = self._gauge("trireme_train_grad_norm", "Global gradient norm before clipping")
        self._step = self._gauge("trireme_train_step", "Completed optimizer steps of the job")
        self._tflops = self._gauge("trireme_train_tflops_per_device", "10^12 model operations per second and device")
        self._throughput = self._gauge("trireme_train_tokens_per_second", "Tokens per second of the whole job")
        self._mfu = Gauge(
            "trireme_train_mfu_ratio", "Model FLOP/s utilisation", (*LABELS, "basis"), registry=self.registry
        )
        self._tokens = Counter(
            "trireme_train_tokens_total",
            "Tokens trained by this pod's job since the pod began",
            LABELS,
            registry=self.registry,
        )
        self._duration = Histogram(
            "trireme_step_duration_seconds",
            "Duration of an optimizer step",
            LABELS,
            buckets=_STEP_BUCKETS,
            registry=self.registry,
        )
        self._memory = Gauge(
            "trireme_rank_peak_memory_bytes",
            "Peak memory of a rank: allocated on its CUDA device, else resident",
            (*LABELS, "rank"),
            registry=self.registry,
        )
        self._stall = self._gauge("trireme_checkpoint_stall_seconds", "Time training stood still for the last save")
        self._upload = self._gauge("trireme_checkpoint_upload_seconds", "From the last save to its commit")
        self._bytes = self._gauge("trireme_checkpoint_bytes", "Size of the last committed checkpoint")
        self._committed_step = self._gauge("trireme_checkpoint_step", "Step of the last committed checkpoint")
        self._commits = Counter(
            "trireme_checkpoint_commits_total", "Committed checkpoints", LABELS, registry=self.registry
        )
        self._failing = self._gauge("trireme_checkpoint_failing", "1 while checkpoints do not reach the store")

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, LABELS, registry=self.registry)

    def serve(self, address: str, port: int) -> None:
        """Answer on address:port from a thread. Raises OSError."""
        start_http_server(port, addr=address, registry=self.registry)

    def step(self, progress: Progress) -> None:
        """A step was completed."""
        values = (
            (self._loss, progress.loss),
            (self._validation, progress.validation_loss),
            (self._rate, progress.learning_rate),
            (self._norm, progress.grad_norm),
            (self._tflops, progress.tflops_per_device),
            (self._throughput, progress.tokens_per_second),
            (self._step, progress.step),
        )
        for gauge, value in values:
            if value is not None:
                gauge.labels(*self._job).set(value)
        if progress.mfu is not None:
            self._mfu.labels(*self._job, progress.mfu_basis or "unknown").set(progress.mfu)
        if progress.step_seconds is not None and progress.tokens != self._tokens_seen:
            self._duration.labels(*self._job).observe(progress.step_seconds)
        if self._tokens_seen is not None and progress.tokens > self._tokens_seen:
            self._tokens.labels(*self._job).inc(progress.tokens - self._tokens_seen)
        self._tokens_seen = progress.tokens

    def memory(self, rank: int, peak_bytes: int) -> None:
        """A rank's peak memory."""
        if peak_bytes:
            self._memory.labels(*self._job, str(rank)).set(peak_bytes)

    def saved(self, event: SavedEvent) -> None:
        """A rank saved."""
        self._stall.labels(*self._job).set(event.stall_seconds)

    def checkpoints(self, report: CheckpointReport) -> None:
        """The state of the saves."""
        self._failing.labels(*self._job).set(report.failing_reason is not None)
        last = report.last_committed
        if last is not None and last.step not in self._facts:
            self._facts.add(last.step)
            self._commits.labels(*self._job).inc()
            self._upload.labels(*self._job).set(last.upload_seconds)
            self._bytes.labels(*self._job).set(last.bytes)
            self._committed_step.labels(*self._job).set(last.step)
