"""The metrics of a serving pod: its own, and vLLM's with the service's labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from trireme.metrics import SERVICE_LABELS, MetricGroup, gauge
from trireme.protocol.serving import ReplicaReport, ServiceIdentity

ENGINE_PREFIX = "vllm:"
"""Of the engine's own metrics; what else its process tells, of Python and its web server, is left out."""

REPLICA_INFO = gauge("trireme_replica_info", "1; which revision the replica is of.", *SERVICE_LABELS, "revision")
REPLICA_STATE = gauge(
    "trireme_replica_state", "1 for how far the replica is; other states have no series.", *SERVICE_LABELS, "state"
)
REPLICA_READY = gauge("trireme_replica_ready", "1 while the Service may lead to it.", *SERVICE_LABELS)
START_SECONDS = gauge(
    "trireme_replica_start_seconds",
    "Duration of each stage of the last start: fetching and verifying files, checking them, loading the engine.",
    *SERVICE_LABELS,
    "stage",
)
ADAPTERS_LOADED = gauge("trireme_replica_adapters_loaded", "Adapters that vLLM has loaded.", *SERVICE_LABELS)
ADAPTERS_REFUSED = gauge(
    "trireme_replica_adapters_refused", "Adapters that are wanted and cannot be loaded.", *SERVICE_LABELS
)
ENGINE_SCRAPED = gauge(
    "trireme_replica_engine_scraped", "1 when vLLM's own metrics are part of this scrape, else 0.", *SERVICE_LABELS
)

GROUPS = (
    MetricGroup(
        "Replicas",
        "From every pod of a service, port 9464. vLLM's own metrics (`vllm:...`) come with them, see below.",
        (
            REPLICA_INFO,
            REPLICA_STATE,
            REPLICA_READY,
            START_SECONDS,
            ADAPTERS_LOADED,
            ADAPTERS_REFUSED,
            ENGINE_SCRAPED,
        ),
    ),
)


def collect(
    service: ServiceIdentity,
    report: ReplicaReport,
    ready: bool,
    stage_seconds: Mapping[str, float],
    engine: str | None,
) -> Iterator[Family]:
    """All that a replica tells; `engine`: vLLM's metrics as text, None while it does not answer."""
    labels = (service.namespace, service.name)
    yield REPLICA_INFO.family([((*labels, report.revision), 1.0)])
    yield REPLICA_STATE.family([((*labels, report.state), 1.0)])
    yield REPLICA_READY.family([(labels, float(ready))])
    yield START_SECONDS.family(((*labels, stage), seconds) for stage, seconds in stage_seconds.items())
    yield ADAPTERS_LOADED.family([(labels, len(report.adapters))])
    yield ADAPTERS_REFUSED.family([(labels, len(report.refused))])
    yield ENGINE_SCRAPED.family([(labels, float(engine is not None))])
    if engine is not None:
        yield from relabelled(engine, dict(zip(SERVICE_LABELS, labels, strict=True)))


def relabelled(text: str, labels: Mapping[str, str]) -> Iterator[Family]:
    """vLLM's families with the service's labels on each sample."""
    for family in text_string_to_metric_families(text):
        if family.name.startswith(ENGINE_PREFIX):
            family.samples = [sample._replace(labels={**sample.labels, **labels}) for sample in family.samples]
            yield family
