"""What decide() sees and what it answers: plain values, no client, no clock."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

from trireme.protocol import Report, Target
from trireme.resources.common import TrainingJobSpec
from trireme.resources.references import JobReference
from trireme.resources.status import JobState, JobStatus, ModelStatus
from trireme_operator.decide.defaults import PodDefaults

Quantities = Mapping[str, int]
"""Amounts by resource name, in thousandths (so that cpu: 500m is 500)."""


def to_time(seconds: float) -> datetime:
    """A UTC time from seconds since the epoch."""
    return datetime.fromtimestamp(seconds, tz=UTC)


def seconds_since(moment: datetime | None, now: float) -> float:
    """Seconds from `moment` to `now`; 0 when there is no such moment."""
    return 0.0 if moment is None else now - moment.timestamp()


@dataclass(frozen=True)
class PodView:
    """What matters of a pod of the job."""

    name: str
    uid: str
    resource_version: str
    slot: int
    phase: str = "Pending"
    node: str | None = None
    address: str | None = None
    deleting: bool = False
    delete_by: float | None = None  # when the grace of its deletion ends
    ready: bool = False
    created_at: float = 0.0
    bound_at: float = 0.0  # when it got its node
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    termination_reason: str = ""
    waiting_reason: str = ""
    waiting_message: str = ""
    unschedulable: str = ""
    gated: tuple[str, ...] = ()  # scheduling gates: while there is one, no scheduler looks for a node
    disruption: str = ""
    token_secret: str = ""  # name of the Secret with its agent's token

    @property
    def finished(self) -> bool:
        """Whether its containers ended for good."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def refused(self) -> bool:
        """Whether the node's container runtime could not start its container: of what would have run, nothing ran."""
        return self.phase == "Failed" and self.termination_reason in ("StartError", "ContainerCannotRun")


@dataclass(frozen=True)
class NodeView:
    """What matters of a node. `free` already excludes what bound pods requested."""

    name: str
    ready: bool = True
    schedulable: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Mapping[str, str], ...] = ()
    free: Quantities = field(default_factory=dict)
    allocatable: Quantities = field(default_factory=dict)  # empty: not known


KEY_REFUSED = "refuses the operator's key"


@dataclass(frozen=True)
class Contact:
    """What the poller knows of one agent, that is of one pod."""

    pod_uid: str
    since: float  # when polling of this pod began
    last: float | None = None  # last sign of life
    report: Report | None = None
    sent: Target | None = None  # the last target that this agent took
    error: str = ""

    def silent_seconds(self, now: float) -> float:
        """Seconds without a sign of life."""
        return now - (self.since if self.last is None else self.last)

    @property
    def key_refused(self) -> bool:
        """Whether its agent answers and takes none of the operator's keys."""
        return self.error == KEY_REFUSED


@dataclass(frozen=True)
class Claim:
    """Capacity that another job of ours is about to take."""

    created: float
    uid: str
    requests: Quantities
    unbound: int  # pods that exist without a node
    missing: int  # slots that want a pod
    waiting: bool  # nothing of it exists yet: it takes its whole gang or nothing
    spec: TrainingJobSpec
    name: str = ""
    own_nodes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class UpstreamView:
    """What matters of a job whose model another one asks for."""

    uid: str
    deleting: bool = False
    state: JobState = JobState.PENDING
    model: ModelStatus | None = None
    failure: str = ""


@dataclass(frozen=True)
class Upstream:
    """A job that a spec names; `found` is None while there is no such job."""

    field: str
    reference: JobReference
    found: UpstreamView | None = None


@dataclass(frozen=True)
class Obstacle:
    """Why the API server did not create an object of the job when that was last tried."""

    reason: str
    message: str


@dataclass(frozen=True)
class JobView:
    """The job itself."""

    kind: str
    namespace: str
    name: str
    uid: str
    resource_version: str
    generation: int
    created: float
    deleting: bool
    spec: Mapping[str, Any]
    status: JobStatus


@dataclass(frozen=True)
class Policy:
    """Settings of the operator that decisions depend on."""

    default_image: str = "ghcr.io/trireme-dev/trireme-trainer:latest"
    pod_defaults: PodDefaults = field(default_factory=PodDefaults)
    progress_interval_seconds: float = 10.0
    release_grace_seconds: float = 120.0
    exclude_after_failures: int = 3
    exclusion_seconds: float = 3600.0
    stuck_pod_seconds: float = 30.0
    victim_grace_seconds: float = 10.0
    hold_timeout_seconds: float = 60.0
    leading_since: float = 0.0


@dataclass(frozen=True)
class Observed:
    """Everything that one decision is based on. `now` is seconds since the epoch, or a model's time."""

    now: float
    job: JobView
    pods: tuple[PodView, ...] = ()
    nodes: tuple[NodeView, ...] | None = None  # None: nodes cannot be seen
    contacts: Mapping[str, Contact] = field(default_factory=dict)  # by pod UID
    claims: tuple[Claim, ...] = ()
    upstreams: tuple[Upstream, ...] = ()
    obstacle: Obstacle | None = None
    policy: Policy = Policy()

    def pod(self, slot: int) -> PodView | None:
        """The pod of a slot."""
        return next((p for p in self.pods if p.slot == slot), None)

    def node(self, name: str | None) -> NodeView | None:
        """A node by name; None when it is gone or nodes cannot be seen."""
        return None if name is None else self._nodes_by_name.get(name)

    @cached_property
    def _nodes_by_name(self) -> Mapping[str, NodeView]:
        return {node.name: node for node in self.nodes or ()}

    def contact(self, pod: PodView | None) -> Contact | None:
        """What the poller knows of a pod."""
        return None if pod is None else self.contacts.get(pod.uid)

    def silent_seconds(self, pod_uid: str) -> float:
        """Seconds without a sign of life of a pod, also one whose object is gone.

        An operator that has just taken over counts from then: it cannot know better.
        """
        contact = self.contacts.get(pod_uid)
        return self.now - self.policy.leading_since if contact is None else contact.silent_seconds(self.now)

    def node_down(self, name: str | None) -> bool | None:
        """Whether a node is known to be down or gone; None when nodes cannot be seen."""
        if self.nodes is None or name is None:
            return None
        node = self.node(name)
        return node is None or not node.ready


# Actions: each is idempotent and can be repeated after a crash.


@dataclass(frozen=True)
class EnsureObjects:
    """Create the job's Service, ConfigMap and Secret where they are missing."""


@dataclass(frozen=True)
class CreatePod:
    """Create the pod of a slot; nothing happens when a pod of that name exists."""

    slot: int
    excluded_nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DeletePod:
    """Delete exactly this pod in exactly this state."""

    name: str
    uid: str
    resource_version: str
    reason: str
    force: bool = False
    grace_seconds: int | None = None  # None: the pod's own


@dataclass(frozen=True)
class PutTarget:
    """Tell one agent what is wanted of it."""

    slot: int
    pod_uid: str
    address: str
    target: Target


@dataclass(frozen=True)
class DeleteJob:
    """Delete the finished job (its time to live is over)."""


Action = EnsureObjects | CreatePod | DeletePod | PutTarget | DeleteJob


@dataclass(frozen=True)
class JobEvent:
    """A Kubernetes Event on the job."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class Decision:
    """Either a status to write, with nothing else, or actions that the stored status already covers.

    A status that begins something (an attempt, a resume point, an end) is written and seen to be written before
    any action for it.
    """

    status: JobStatus | None = None
    actions: tuple[Action, ...] = ()
    events: tuple[JobEvent, ...] = ()
    told: tuple[JobEvent, ...] = ()  # what the stored status implies: recorded where that was not done
    requeue_seconds: float | None = None
