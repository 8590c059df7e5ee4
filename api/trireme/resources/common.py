"""Parts of a spec that every kind of training job has: parallelism, workers, checkpoint, fault tolerance, life time."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from trireme.planning.hardware import HARDWARE, AcceleratorKind
from trireme.resources.base import (
    ObjectName,
    Passthrough,
    Quantity,
    RawObject,
    S3Uri,
    Strict,
    parse_quantity_bytes,
)

MAX_JOB_NAME_LENGTH = 40
"""So that `<job>-<uid8>-config` and `<job>-<index>` stay DNS labels."""

RESERVED_ENV_NAMES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "GROUP_RANK",
    "ROLE_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "POD_IP",
    "POD_NAME",
    "POD_NAMESPACE",
    "NODE_NAME",
)
RESERVED_ENV_PREFIXES = ("PET_", "TRIREME_", "TORCHELASTIC_")
RESERVED_VOLUME_PREFIX = "trireme-"
FILES_PATH = "/etc/trireme-files"
"""Where pods find the files of ConfigMaps that a kind asks for."""
RESERVED_MOUNT_PATHS = (
    "/etc/trireme",
    "/etc/trireme-ca",
    "/etc/trireme-credentials",
    FILES_PATH,
    "/scratch",
    "/dev/shm",
)


def is_reserved_env(name: str) -> bool:
    """Whether Trireme sets this environment variable itself, so that a spec must not."""
    return name in RESERVED_ENV_NAMES or name.startswith(RESERVED_ENV_PREFIXES)


class Accelerator(Strict):
    """What a rank computes on."""

    kind: AcceleratorKind = Field(
        description="Entry of the hardware table: peak rate, memory, devices in a node. cpu trains on processors."
    )
    resource_name: str | None = Field(
        default=None,
        min_length=3,
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        description="Extended resource requested once per device. nvidia.com/gpu when left out; none for kind cpu.",
    )
    memory: Quantity | None = Field(
        default=None, description="Memory of one device, where it differs from the hardware table's."
    )

    @property
    def requested_resource(self) -> str | None:
        """The extended resource of one device, or None where ranks run on plain CPUs."""
        return self.resource_name or HARDWARE[self.kind].resource_name


def _list_map(key: str) -> dict[str, Any]:
    """Items are told apart by a key, as in a Pod: no duplicates, and server-side apply merges by it."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


class EnvVar(Passthrough):
    """An environment variable of the container, as in a Pod."""

    name: str = Field(min_length=1, max_length=128, description="Name; those that Trireme sets itself are refused.")
    value: str | None = Field(
        default=None, max_length=4096, description="Text of the variable; valueFrom in its place, as in a Pod."
    )


class Volume(Passthrough):
    """A volume, as in a Pod."""

    name: str = Field(
        min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", description="Name of the volume."
    )


class VolumeMount(Passthrough):
    """A volume's place in the container, as in a Pod."""

    name: str = Field(min_length=1, max_length=63, description="Name of the volume.")
    mount_path: str = Field(min_length=1, max_length=1024, pattern=r"^/", description="Path in the container.")


class LocalReference(Strict):
    """An object of the job's own namespace."""

    name: ObjectName = Field(description="Name of the object.")


class Resources(Strict):
    """Compute resources of the container beside its devices."""

    requests: dict[Annotated[str, Field(max_length=253)], Quantity] = Field(
        default_factory=dict, max_length=32, description="Requests by resource name."
    )
    limits: dict[Annotated[str, Field(max_length=253)], Quantity] = Field(
        default_factory=dict, max_length=32, description="Limits by resource name."
    )


LabelMap = dict[Annotated[str, Field(max_length=317)], Annotated[str, Field(max_length=1024)]]


class PodSettings(Strict):
    """What every kind lets its pods be given: devices, image, resources, and where and how they run."""

    accelerator: Accelerator = Field(description="What is computed on.")
    image: str | None = Field(
        default=None,
        min_length=1,
        max_length=512,
        description="Image of the pods; the operator's setting for such pods when left out.",
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        default=None, description="When the image is pulled; Kubernetes' default when left out."
    )
    image_pull_secrets: list[LocalReference] = Field(
        default_factory=list,
        max_length=16,
        description="Secrets with registry credentials.",
        json_schema_extra=_list_map("name"),
    )
    resources: Resources = Field(
        default_factory=Resources, description="Requests and limits added to those of the devices."
    )
    shared_memory: Quantity | None = Field(
        default=None,
        description="Size limit of /dev/shm, held in memory and counted as the container's. When left out: half "
        "the memory limit, or 8Gi without one; for kind cpu the node's default.",
    )
    env: list[EnvVar] = Field(
        default_factory=list,
        max_length=128,
        description="Environment variables of the container.",
        json_schema_extra=_list_map("name"),
    )
    env_from: list[RawObject] = Field(
        default_factory=list, max_length=16, description="ConfigMaps and Secrets taken as environment, as in a Pod."
    )
    volumes: list[Volume] = Field(
        default_factory=list, max_length=32, description="Volumes of the pod.", json_schema_extra=_list_map("name")
    )
    volume_mounts: list[VolumeMount] = Field(
        default_factory=list,
        max_length=64,
        description="Volume mounts of the container.",
        json_schema_extra=_list_map("mountPath"),
    )
    node_selector: LabelMap = Field(default_factory=dict, max_length=32, description="Labels that a node must have.")
    affinity: RawObject | None = Field(default=None, description="Scheduling affinity, as in a Pod.")
    tolerations: list[RawObject] = Field(
        default_factory=list, max_length=32, description="Taints that the pods tolerate, as in a Pod."
    )
    service_account_name: ObjectName | None = Field(
        default=None, description="Service account of the pods; it carries workload identity."
    )
    priority_class_name: ObjectName | None = Field(default=None, description="Priority class of the pods.")
    scheduler_name: ObjectName | None = Field(default=None, description="Scheduler that places the pods.")
    security_context: RawObject | None = Field(default=None, description="Security context of the pod, as in a Pod.")
    container_security_context: RawObject | None = Field(
        default=None,
        description="Security context of the container, as in a Pod: for example capabilities.add IPC_LOCK for "
        "RDMA. Fields left out keep the Restricted standard's values and a read-only root.",
    )
    labels: LabelMap = Field(
        default_factory=dict,
        max_length=64,
        description="Labels added to the pods, such as kueue.x-k8s.io/queue-name.",
    )
    annotations: LabelMap = Field(default_factory=dict, max_length=64, description="Annotations added to the pods.")
    termination_grace_period_seconds: int | None = Field(
        default=None,
        ge=0,
        le=86400,
        description="Time a pod gets after SIGTERM; at least drainSeconds plus 30 when left out.",
    )

    @property
    def memory_limit_bytes(self) -> int | None:
        """Memory limit of one pod in bytes, when one is set."""
        limit = self.resources.limits.get("memory")
        return None if limit is None else parse_quantity_bytes(limit)

    @field_validator("env")
    @classmethod
    def _no_reserved_env(cls, env: list[EnvVar]) -> list[EnvVar]:
        for variable in env:
            if is_reserved_env(variable.name):
                raise ValueError(f"{variable.name} is set by Trireme and is reserved")
        return env

    @model_validator(mode="after")
    def _no_reserved_volumes(self) -> Self:
        for name in [v.name for v in self.volumes]:
            if name.startswith(RESERVED_VOLUME_PREFIX):
                raise ValueError(f"volume {name}: names that begin with {RESERVED_VOLUME_PREFIX} are reserved")
        for path in [m.mount_path for m in self.volume_mounts]:
            if path.rstrip("/") in RESERVED_MOUNT_PATHS:
                raise ValueError(f"mountPath {path} is used by Trireme and is reserved")
        return self


class Gang(Strict):
    """How many pods a job has, and of how many ranks each."""

    nodes: int = Field(default=1, ge=1, le=4096, description="Pods of the job, each on a node of its own.")
    devices_per_node: int = Field(default=8, ge=1, le=64, description="Devices, and so ranks, in each pod.")

    @property
    def world_size(self) -> int:
        """Ranks of the whole job."""
        return self.nodes * self.devices_per_node


class Workers(PodSettings, Gang):
    """The pods of the job: one per node, each with `devicesPerNode` ranks."""


class KeyReference(Strict):
    """A key of a ConfigMap of the job's own namespace."""

    name: ObjectName = Field(description="Name of the ConfigMap.")
    key: str = Field(default="ca.crt", min_length=1, max_length=253, description="Key whose value is used.")


class CaBundle(Strict):
    """Where the certificates come from that the object store's own is checked against."""

    config_map_ref: KeyReference = Field(description="ConfigMap with a PEM bundle.")


class Credentials(Strict):
    """How pods sign in to the object store: exactly one way."""

    secret_ref: LocalReference | None = Field(
        default=None,
        description="Secret whose keys become environment variables: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, "
        "where wanted, AWS_SESSION_TOKEN and AWS_ENDPOINT_URL_S3.",
    )
    workload_identity: bool | None = Field(
        default=None, description="True: the pods' service account is the identity (IRSA, EKS Pod Identity, ...)."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> "Credentials":
        if (self.secret_ref is not None) == bool(self.workload_identity):
            raise ValueError("exactly one of secretRef and workloadIdentity must be set")
        return self


class Checkpoint(Strict):
    """Where checkpoints go, how often, and what is kept. The job's data and model lie under the same URI."""

    uri: S3Uri = Field(description="s3://bucket/prefix; keys are <uri>/<namespace>/<name>/<job-uid>/...")
    endpoint: str | None = Field(
        default=None,
        max_length=512,
        pattern=r"^https?://[^/\s]+(/.*)?$",
        description="URL of an S3-compatible server. Left out: AWS_ENDPOINT_URL_S3 of the credentials, else AWS.",
    )
    region: str | None = Field(default=None, min_length=1, max_length=63, description="Region of the bucket.")
    path_style: bool = Field(
        default=False, description="Put the bucket in the path and not in the host name, as many own servers need."
    )
    ca_bundle: CaBundle | None = Field(default=None, description="Certificates that the store's own is checked with.")
    credentials: Credentials | None = Field(
        default=None, description="How pods sign in; the environment's default chain when left out."
    )
    interval_steps: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="Save after this many steps; with intervalSeconds, whichever comes first.",
    )
    interval_seconds: int = Field(
        default=600, ge=0, le=604800, description="Save after this much time since the last save; 0 turns this off."
    )
    keep: int = Field(
        default=3, ge=1, le=1000, description="Committed checkpoints kept; the last verified one is never deleted."
    )
    on_existing: Literal["resume", "refuse"] = Field(
        default="resume",
        description="When the URI holds checkpoints of an earlier job with this namespace and name: resume from "
        "the newest that verifies, or refuse to start.",
    )


class Budgets(Strict):
    """Restarts allowed by cause, over the job's life. A cause beyond its budget fails the job."""

    application: int = Field(
        default=3, ge=0, le=10_000, description="Ranks that ended with an exception or a non-zero exit code."
    )
    out_of_memory: int = Field(
        default=3, ge=0, le=10_000, description="Containers killed for exceeding their memory limit."
    )
    hang: int = Field(default=5, ge=0, le=10_000, description="Ranks that made no progress for stepTimeoutSeconds.")
    infrastructure: int = Field(
        default=1000, ge=0, le=1_000_000, description="Pods deleted or evicted, ranks killed, nodes lost."
    )


class Timeouts(Strict):
    """How long each thing may take before the operator acts."""

    fence_seconds: int = Field(
        default=30,
        ge=5,
        le=3600,
        description="A slot not heard of for this long counts as stopped; an agent cut off for as long stops itself.",
    )
    start_timeout_seconds: int = Field(
        default=600, ge=10, le=86400, description="From ranks started to their first step, restore included."
    )
    step_timeout_seconds: int = Field(
        default=600, ge=5, le=86400, description="A rank without a heartbeat or a step for this long hangs."
    )
    drain_seconds: int = Field(
        default=120, ge=1, le=86400, description="Time the ranks get to save when asked to stop."
    )
    scheduling_timeout_seconds: int = Field(
        default=300,
        ge=5,
        le=86400,
        description="A gang not complete after this long gives all its pods back, and retries.",
    )
    contact_timeout_seconds: int = Field(
        default=10, ge=2, le=3600, description="An agent that does not answer for this long is suspected lost."
    )


class FaultTolerance(Strict):
    """What happens when something breaks. Everything here may change while the job runs."""

    budgets: Budgets = Field(
        default_factory=Budgets, description="Restarts that each cause may take; one more fails the job."
    )
    timeouts: Timeouts = Field(
        default_factory=Timeouts, description="When silence, standstill or waiting counts as a fault."
    )


class TrainingJobSpec(Strict):
    """What every kind of training job has."""

    workers: Workers = Field(description="The pods of the job.")
    checkpoint: Checkpoint = Field(description="Where checkpoints go and how often.")
    fault_tolerance: FaultTolerance = Field(
        default_factory=FaultTolerance, description="Restart budgets and time limits."
    )
    suspend: bool = Field(default=False, description="Save, stop and give the pods back; false continues.")
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=31_536_000,
        description="Delete the finished job after this long; never what it stored. Kept for ever when left out.",
    )
    active_deadline_seconds: int | None = Field(
        default=None, ge=1, le=315_360_000, description="Fail the job when it has been active for this long."
    )


def placement(spec: TrainingJobSpec) -> dict[str, Any]:
    """The part of a PlanRequest that every kind of training job gives alike: nodes, devices, memory."""
    workers = spec.workers
    memory: int | None = None
    if workers.accelerator.memory is not None:
        memory = parse_quantity_bytes(workers.accelerator.memory)
    elif workers.accelerator.kind == "cpu" and workers.memory_limit_bytes is not None:
        memory = workers.memory_limit_bytes // workers.devices_per_node
    return {
        "nodes": workers.nodes,
        "devices_per_node": workers.devices_per_node,
        "accelerator": workers.accelerator.kind,
        "device_memory_bytes": memory,
    }
