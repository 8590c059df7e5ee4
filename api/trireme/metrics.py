"""What a metric of Prometheus is to every process: one definition, from which instruments and docs/metrics.md are made.

Names and units follow https://prometheus.io/docs/practices/naming/: base units, `_total` for counters, `_ratio` from 0
to 1. A job is named by `job_name`, because `job` is the label by which Prometheus names its own scrape job.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family

from trireme.protocol.base import METRICS_PORT

SCRAPE_ANNOTATIONS = {
    "prometheus.io/scrape": "true",
    "prometheus.io/port": str(METRICS_PORT),
    "prometheus.io/path": "/metrics",
}
"""By which a Prometheus with plain pod discovery finds the pods of jobs and services."""

JOB_LABELS = ("namespace", "job_name", "kind")
SERVICE_LABELS = ("namespace", "service_name")


class MetricType(StrEnum):
    """Types of metrics."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """One metric."""

    name: str
    type: MetricType
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets."""
    optional: bool = False
    """Whether a job or service of the right kind may be without it."""

    def gauge(self, registry: CollectorRegistry) -> Gauge:
        """An instrument for it."""
        assert self.type is MetricType.GAUGE, self.name
        return Gauge(self.name, self.help, self.labels, registry=registry)

    def counter(self, registry: CollectorRegistry) -> Counter:
        """An instrument for it."""
        assert self.type is MetricType.COUNTER, self.name
        return Counter(self.name, self.help, self.labels, registry=registry)

    def histogram(self, registry: CollectorRegistry) -> Histogram:
        """An instrument for it."""
        assert self.type is MetricType.HISTOGRAM, self.name
        return Histogram(self.name, self.help, self.labels, buckets=self.buckets, registry=registry)

    def family(self, samples: Iterable[tuple[Sequence[str], float]] = ()) -> CounterMetricFamily | GaugeMetricFamily:
        """What a collector yields: label values and a number of each series."""
        made: CounterMetricFamily | GaugeMetricFamily
        if self.type is MetricType.COUNTER:
            made = CounterMetricFamily(self.name, self.help, labels=self.labels)
        else:
            made = GaugeMetricFamily(self.name, self.help, labels=self.labels)
        for values, number in samples:
            made.add_metric(values, number)
        return made


def gauge(name: str, text: str, *labels: str, optional: bool = False) -> Metric:
    """Definition of a number that goes up and down."""
    return Metric(name, MetricType.GAUGE, text, labels, optional=optional)


def counter(name: str, text: str, *labels: str, optional: bool = False) -> Metric:
    """Definition of a number that only goes up."""
    return Metric(name, MetricType.COUNTER, text, labels, optional=optional)


def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...], optional: bool = False) -> Metric:
    """Definition of a distribution."""
    return Metric(name, MetricType.HISTOGRAM, text, labels, buckets, optional)


CONTENT_TYPE = CONTENT_TYPE_LATEST
"""Of what `exposition` writes."""


class _Collected:
    """Families as a registry that was asked already."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Family]:
        return iter(self._families)


def exposition(families: Iterable[Family]) -> bytes:
    """Families in Prometheus' text format."""
    return generate_latest(_Collected(families))


@dataclass(frozen=True)
class MetricGroup:
    """Metrics that one process exports for one purpose; a section of docs/metrics.md."""

    title: str
    text: str
    """Who exports them, and for how long."""
    metrics: tuple[Metric, ...]


LABEL_MEANINGS = {
    "namespace": "Namespace of the job or service.",
    "job_name": "Name of the job.",
    "kind": "Kind of the object: PretrainJob, FineTuneJob, RLHFJob, InferenceService.",
    "service_name": "Name of the InferenceService.",
    "model": "What is trained or served: a preset, a job (Kind/name), a URI, or `shape` where the manifest has one.",
    "engine": "What makes the steps: megatron, deepspeed or ddp.",
    "layout": "Sizes of the parallel axes, for example `tensor=2,pipeline=1,data=4,context=1`, or `data=8,zero=2`.",
    "image": "Image of the pods.",
    "state": "One of the states of the object's STATE column, or of a replica.",
    "category": "One of the categories of `status.time.seconds`, see architecture.md.",
    "cause": "Cause of a restart, as in `status.restarts.byCause`.",
    "reason": "A CamelCase reason, as in conditions, or what slows a clock down.",
    "resource": "A resource of the Kubernetes API (plural), or the extended resource of a device.",
    "basis": "What MFU refers to: an entry of the hardware table, or `measured-cpu`.",
    "phase": "`train`: the last step; `validation`: held-out rows at the last validation; `start`: the same before the "
    "first step.",
    "reward": "Name of one of the rewards of the manifest, at most eight.",
    "part": "Part of a step, see below.",
    "rank": "Rank of the job, counted over all pods.",
    "device": "Index of the device as the driver counts in the pod.",
    "uuid": "The device's own identifier.",
    "product": "What its maker calls the device.",
    "xid": "NVIDIA's number of the error.",
    "type": "`corrected` or `uncorrected`.",
    "adapter": "Name of an adapter of the manifest.",
    "stage": "Stage of a replica's start: fetch, check or load.",
    "revision": "Revision of the service.",
    "error": "Type of the exception.",
    "verb": "HTTP method, or verb of RBAC.",
    "code": "HTTP status; 0 where there was no answer.",
    "method": "HTTP method of the call to an agent.",
    "outcome": "`ok`, `stale`, or the type of the error.",
    "action": "Type of the action.",
    "group": "API group; empty for the core group.",
    "version": "Version of the program.",
}
"""Every label of every metric."""

STEP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 300.0)
TRANSFER_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
REQUEST_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
