"""The operator's own Prometheus metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()

RECONCILE_SECONDS = Histogram(
    "trireme_operator_reconcile_seconds",
    "Duration of one pass over a job.",
    ["kind"],
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=REGISTRY,
)
RECONCILE_ERRORS = Counter(
    "trireme_operator_reconcile_errors", "Passes over a job that failed.", ["kind", "error"], registry=REGISTRY
)
QUEUE_DEPTH = Gauge("trireme_operator_queue_depth", "Jobs that wait for a pass.", registry=REGISTRY)
API_CALLS = Counter(
    "trireme_operator_api_calls", "Requests to the API server.", ["verb", "resource", "code"], registry=REGISTRY
)
API_SECONDS = Histogram(
    "trireme_operator_api_seconds", "Duration of requests to the API server.", ["verb"], registry=REGISTRY
)
AGENT_POLLS = Counter("trireme_operator_agent_polls", "Requests to agents.", ["method", "outcome"], registry=REGISTRY)
LEADER = Gauge("trireme_operator_leader", "1 while this replica leads.", registry=REGISTRY)
ACTIONS = Counter("trireme_operator_actions", "Actions applied.", ["action"], registry=REGISTRY)

JOB_STATE = Gauge(
    "trireme_job_state", "1 for the state that a job is in.", ["kind", "namespace", "name", "state"], registry=REGISTRY
)
JOB_ATTEMPT = Gauge("trireme_job_attempt", "Current attempt.", ["kind", "namespace", "name"], registry=REGISTRY)
JOB_STEP = Gauge("trireme_job_step", "Completed steps.", ["kind", "namespace", "name"], registry=REGISTRY)
JOB_RESTARTS = Gauge(
    "trireme_job_restarts", "Restarts by cause.", ["kind", "namespace", "name", "cause"], registry=REGISTRY
)
JOB_SECONDS = Gauge(
    "trireme_job_seconds",
    "Seconds of a job's life by category.",
    ["kind", "namespace", "name", "category"],
    registry=REGISTRY,
)
SERVICE_STATE = Gauge(
    "trireme_service_state", "1 for the state that a service is in.", ["namespace", "name", "state"], registry=REGISTRY
)
SERVICE_READY_REPLICAS = Gauge(
    "trireme_service_ready_replicas", "Replicas that a service leads to.", ["namespace", "name"], registry=REGISTRY
)


def clear_jobs() -> None:
    """Remove all that is said of jobs and services: it is the leader's to say."""
    jobs = (JOB_STATE, JOB_ATTEMPT, JOB_STEP, JOB_RESTARTS, JOB_SECONDS)
    for gauge in (*jobs, SERVICE_STATE, SERVICE_READY_REPLICAS):
        gauge.clear()
