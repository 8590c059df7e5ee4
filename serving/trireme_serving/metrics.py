"""The metrics of a serving pod: its own, and vLLM's with the service's labels."""

from __future__ import annotations

from trireme.metrics import SERVICE_LABELS, MetricGroup, gauge

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
