"""What decide() sees of a service and what it answers: plain values, no client, no clock."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trireme.protocol.serving import AdapterSource, ReplicaReport
from trireme.resources.inference import InferenceSpec
from trireme.resources.inference_status import ServiceStatus, TargetStatus
from trireme_operator.decide.defaults import PodDefaults
from trireme_operator.decide.model import JobEvent, Obstacle, Upstream


@dataclass(frozen=True)
class ServiceView:
    """The InferenceService itself."""

    kind: str
    namespace: str
    name: str
    uid: str
    resource_version: str
    generation: int
    deleting: bool
    spec: Mapping[str, Any]
    status: ServiceStatus


@dataclass(frozen=True)
class ServingPod:
    """What matters of a pod of the service."""

    name: str
    uid: str
    revision: str
    node: str | None = None
    address: str | None = None
    ready: bool = False
    deleting: bool = False
    finished: bool = False
    restarts: int = 0
    waiting_reason: str = ""
    waiting_message: str = ""
    unschedulable: str = ""
    ended: str = ""  # how its container ended last


@dataclass(frozen=True)
class DeploymentView:
    """The Deployment of a revision."""

    name: str
    uid: str
    resource_version: str
    revision: str
    replicas: int
    deleting: bool = False
    problem: str = ""  # why it creates no pods


@dataclass(frozen=True)
class EndpointView:
    """The Service."""

    resource_version: str
    address: str
    port: int
    revision: str


@dataclass(frozen=True)
class BudgetView:
    """The PodDisruptionBudget."""

    name: str
    uid: str
    resource_version: str
    revision: str
    deleting: bool = False


@dataclass(frozen=True)
class ServicePolicy:
    """What the operator's own settings say."""

    default_image: str = "ghcr.io/trireme-dev/trireme-serving:latest"
    pod_defaults: PodDefaults = field(default_factory=PodDefaults)


@dataclass(frozen=True)
class ObservedService:
    """Everything that one decision is based on. `now` is seconds since the epoch, or a model's time."""

    now: float
    service: ServiceView
    pods: tuple[ServingPod, ...] = ()
    reports: Mapping[str, ReplicaReport] = field(default_factory=dict)  # by pod UID
    deployments: tuple[DeploymentView, ...] = ()
    endpoint: EndpointView | None = None
    budget: BudgetView | None = None
    upstreams: tuple[Upstream, ...] = ()
    obstacle: Obstacle | None = None
    policy: ServicePolicy = ServicePolicy()

    def of_revision(self, revision: str | None) -> tuple[ServingPod, ...]:
        """The pods of a revision that are not on their way out."""
        return tuple(p for p in self.pods if p.revision == revision and not p.deleting and not p.finished)

    def deployment(self, revision: str) -> DeploymentView | None:
        """The Deployment of a revision."""
        return next((d for d in self.deployments if d.revision == revision), None)


# Actions: each is idempotent and can be repeated after a crash.


@dataclass(frozen=True)
class EnsureAdapters:
    """Have the ConfigMap that the pods read name these adapters."""

    adapters: tuple[AdapterSource, ...]


@dataclass(frozen=True)
class EnsureEndpoint:
    """Create the Service, leading to a revision; nothing happens when it exists."""

    revision: str


@dataclass(frozen=True)
class Direct:
    """Have the Service, in exactly this state, lead to a revision and listen on a port."""

    resource_version: str
    revision: str
    port: int


@dataclass(frozen=True)
class CreateRevision:
    """Create the Deployment of a revision; nothing happens when it exists."""

    target: TargetStatus


@dataclass(frozen=True)
class ScaleRevision:
    """Have the Deployment, in exactly this state, want so many pods."""

    name: str
    resource_version: str
    replicas: int


@dataclass(frozen=True)
class DeleteRevision:
    """Delete exactly this Deployment in exactly this state; its pods drain."""

    name: str
    uid: str
    resource_version: str


@dataclass(frozen=True)
class EnsureBudget:
    """Create the PodDisruptionBudget of a revision's pods; nothing happens when it exists."""

    revision: str


@dataclass(frozen=True)
class MoveBudget:
    """Have the PodDisruptionBudget, in exactly this state, count the pods of a revision."""

    name: str
    resource_version: str
    revision: str


@dataclass(frozen=True)
class DeleteBudget:
    """Delete exactly this PodDisruptionBudget."""

    name: str
    uid: str


ServiceAction = (
    EnsureAdapters
    | EnsureEndpoint
    | Direct
    | CreateRevision
    | ScaleRevision
    | DeleteRevision
    | EnsureBudget
    | MoveBudget
    | DeleteBudget
)


@dataclass(frozen=True)
class ServiceDecision:
    """Either a status to write, with nothing else, or actions that the stored status already covers."""

    status: ServiceStatus | None = None
    actions: tuple[ServiceAction, ...] = ()
    events: tuple[JobEvent, ...] = ()
    requeue_seconds: float | None = None


@dataclass(frozen=True)
class Wanted:
    """A spec that is valid, with what is known of the models that it names."""

    spec: InferenceSpec
    adapters: tuple[AdapterSource, ...]
    """Those whose files are known; others wait for their job."""
    target: TargetStatus | None
    """None while the model's job is waited for and nothing was wanted before."""
    current: bool
    """Whether the target is what the spec asks for now: not while the model's job is waited for."""
