"""The operator's Prometheus metrics: their definitions, and the instruments of what the process counts itself.

What is said of jobs and services is read off their statuses at each scrape, see `collectors`.
"""

from prometheus_client import CollectorRegistry

from trireme.metrics import JOB_LABELS, REQUEST_BUCKETS, SERVICE_LABELS, MetricGroup, counter, gauge, histogram

RECONCILE_SECONDS = histogram(
    "trireme_operator_reconcile_duration_seconds",
    "Duration of one pass over a job or service.",
    "kind",
    buckets=REQUEST_BUCKETS,
)
RECONCILE_ERRORS = counter(
    "trireme_operator_reconcile_errors_total", "Passes that failed.", "kind", "error", optional=True
)
QUEUE_DEPTH = gauge("trireme_operator_queue_depth", "Jobs and services that are due for a pass and wait for a worker.")
QUEUE_AGE = gauge(
    "trireme_operator_queue_oldest_age_seconds", "How long the one that is due longest has waited; 0 when none waits."
)
API_REQUESTS = counter("trireme_operator_api_requests_total", "Requests to the API server.", "verb", "resource", "code")
API_SECONDS = histogram(
    "trireme_operator_api_request_duration_seconds",
    "Duration of requests to the API server.",
    "verb",
    buckets=REQUEST_BUCKETS,
)
AGENT_REQUESTS = counter("trireme_operator_agent_requests_total", "Requests to agents.", "method", "outcome")
ACTIONS = counter("trireme_operator_actions_total", "Actions applied.", "action")
LEADER = gauge("trireme_operator_leader", "1 while this replica leads.")
READY = gauge(
    "trireme_operator_ready", "1 when everything was listed, no permission is missing and the CRDs are this version's."
)
BUILD_INFO = gauge("trireme_operator_build_info", "1; the version is in the label.", "version")
LAST_WATCH_EVENT = gauge(
    "trireme_operator_last_watch_event_timestamp_seconds",
    "Unix time of the last event that a watch brought; absent before the first.",
    "resource",
    optional=True,
)
LAST_RELIST = gauge(
    "trireme_operator_last_relist_timestamp_seconds",
    "Unix time of the last full list that the API server answered; every --resync-seconds there is one.",
    "resource",
)
MISSING_PERMISSION = gauge(
    "trireme_operator_missing_permission",
    "1 for each permission that the operator needs and does not have.",
    "group",
    "resource",
    "verb",
    optional=True,
)
CRD_MISMATCH = gauge(
    "trireme_operator_crd_mismatch",
    "1 where the cluster serves another schema of a CRD than this operator's version has, else 0; absent where the "
    "operator may not read CRDs.",
    "resource",
)

JOB_INFO = gauge("trireme_job_info", "1; what the job is.", *JOB_LABELS, "model", "engine", "layout", "image")
JOB_STATE = gauge(
    "trireme_job_state", "1 for the state that the job is in; other states have no series.", *JOB_LABELS, "state"
)
JOB_WAITING = gauge(
    "trireme_job_waiting",
    "1 while the job waits for another job, for inputs or for room, with the reason that its condition has.",
    *JOB_LABELS,
    "reason",
    optional=True,
)
JOB_FAILED = gauge(
    "trireme_job_failed", "1 once the job has failed, with the reason.", *JOB_LABELS, "reason", optional=True
)
JOB_CREATED = gauge("trireme_job_created_timestamp_seconds", "Unix time at which the job was created.", *JOB_LABELS)
JOB_ATTEMPT = gauge("trireme_job_attempt", "Number of the current attempt.", *JOB_LABELS)
JOB_STEP = gauge("trireme_job_step", "Completed steps; less than before after a restart.", *JOB_LABELS)
JOB_TOTAL_STEPS = gauge("trireme_job_total_steps", "Steps of the whole run.", *JOB_LABELS)
JOB_TOKENS = gauge("trireme_job_tokens", "Tokens consumed up to the step, repeated ones once.", *JOB_LABELS)
JOB_SECONDS = counter(
    "trireme_job_seconds_total",
    "Seconds of the job's life by category; they add up to its age.",
    *JOB_LABELS,
    "category",
)
JOB_LOST_SECONDS = counter(
    "trireme_job_lost_seconds_total",
    "Seconds in queued, scheduling, startup, restore, recompute and down from a fault until the last step before it "
    "was passed again, by the fault's cause.",
    *JOB_LABELS,
    "cause",
    optional=True,
)
JOB_GOODPUT = gauge(
    "trireme_job_goodput_ratio", "Share of the job's life, suspensions left out, that was productive.", *JOB_LABELS
)
JOB_RESTARTS = counter("trireme_job_restarts_total", "Restarts by cause.", *JOB_LABELS, "cause", optional=True)
JOB_DEVICES_REQUESTED = gauge(
    "trireme_job_devices_requested",
    "Devices that the job asks for; 0 once it has ended. Ranks on plain processors ask for none.",
    *JOB_LABELS,
    "resource",
    optional=True,
)
JOB_DEVICES_ALLOCATED = gauge(
    "trireme_job_devices_allocated",
    "Devices of the job's pods that are on a node.",
    *JOB_LABELS,
    "resource",
    optional=True,
)
CHECKPOINT_SUCCESS = gauge(
    "trireme_checkpoint_last_success_timestamp_seconds",
    "Unix time at which the newest checkpoint was committed.",
    *JOB_LABELS,
)
CHECKPOINT_STEP = gauge("trireme_checkpoint_last_committed_step", "Step of the newest checkpoint.", *JOB_LABELS)
CHECKPOINT_COMMITS = counter(
    "trireme_checkpoint_commits_total", "Checkpoints committed over all attempts.", *JOB_LABELS
)
CHECKPOINT_FAILING = gauge(
    "trireme_checkpoint_failing", "1 while saves do not reach the store.", *JOB_LABELS, "reason", optional=True
)

SERVICE_INFO = gauge("trireme_service_info", "1; what the service is.", *SERVICE_LABELS, "model", "image")
SERVICE_STATE = gauge(
    "trireme_service_state",
    "1 for the state that the service is in; other states have no series.",
    *SERVICE_LABELS,
    "state",
)
SERVICE_WANTED = gauge("trireme_service_wanted_replicas", "Replicas that the manifest asks for.", *SERVICE_LABELS)
SERVICE_READY = gauge("trireme_service_ready_replicas", "Replicas that the service leads to.", *SERVICE_LABELS)
SERVICE_ADAPTERS = gauge(
    "trireme_service_adapter_replicas",
    "Replicas that have an adapter loaded; 0 for one that is wanted and loaded nowhere.",
    *SERVICE_LABELS,
    "adapter",
    optional=True,
)
SERVICE_DEVICES_REQUESTED = gauge(
    "trireme_service_devices_requested",
    "Devices that the service's replicas ask for.",
    *SERVICE_LABELS,
    "resource",
    optional=True,
)
SERVICE_DEVICES_ALLOCATED = gauge(
    "trireme_service_devices_allocated",
    "Devices of the service's pods that are on a node.",
    *SERVICE_LABELS,
    "resource",
    optional=True,
)
CLUSTER_DEVICES = gauge(
    "trireme_cluster_devices_allocatable",
    "Devices on ready nodes, of the resources that jobs and services ask for; absent where nodes cannot be seen.",
    "resource",
    optional=True,
)

OPERATOR_GROUP = MetricGroup(
    "The operator itself",
    "From every replica of the operator, port 8080. Only the leader reconciles and calls agents.",
    (
        RECONCILE_SECONDS, RECONCILE_ERRORS, QUEUE_DEPTH, QUEUE_AGE, API_REQUESTS, API_SECONDS, AGENT_REQUESTS, ACTIONS,
        LEADER, READY, LAST_WATCH_EVENT, LAST_RELIST, MISSING_PERMISSION, CRD_MISMATCH, BUILD_INFO,
    ),
)  # fmt: skip
JOB_GROUP = MetricGroup(
    "Jobs, as their status has them",
    "From the operator's leader, port 8080, as long as the object exists: also while no pod of the job does.",
    (
        JOB_INFO, JOB_STATE, JOB_WAITING, JOB_FAILED, JOB_CREATED, JOB_ATTEMPT, JOB_STEP, JOB_TOTAL_STEPS, JOB_TOKENS,
        JOB_SECONDS, JOB_LOST_SECONDS, JOB_GOODPUT, JOB_RESTARTS, JOB_DEVICES_REQUESTED, JOB_DEVICES_ALLOCATED,
        CHECKPOINT_SUCCESS, CHECKPOINT_STEP, CHECKPOINT_COMMITS, CHECKPOINT_FAILING,
    ),
)  # fmt: skip
SERVICE_GROUP = MetricGroup(
    "Services, as their status has them",
    "From the operator's leader, port 8080, as long as the object exists.",
    (
        SERVICE_INFO, SERVICE_STATE, SERVICE_WANTED, SERVICE_READY, SERVICE_ADAPTERS, SERVICE_DEVICES_REQUESTED,
        SERVICE_DEVICES_ALLOCATED, CLUSTER_DEVICES,
    ),
)  # fmt: skip
GROUPS = (JOB_GROUP, SERVICE_GROUP, OPERATOR_GROUP)


class Instruments:
    """What one operator process counts itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconcile_seconds = RECONCILE_SECONDS.histogram(self.registry)
        self.reconcile_errors = RECONCILE_ERRORS.counter(self.registry)
        self.api_requests = API_REQUESTS.counter(self.registry)
        self.api_seconds = API_SECONDS.histogram(self.registry)
        self.agent_requests = AGENT_REQUESTS.counter(self.registry)
        self.actions = ACTIONS.counter(self.registry)
        self.leader = LEADER.gauge(self.registry)
        self.leader.set(0)
        self.last_watch_event = LAST_WATCH_EVENT.gauge(self.registry)
        self.last_relist = LAST_RELIST.gauge(self.registry)


INSTRUMENTS = Instruments()
"""Of this process."""
