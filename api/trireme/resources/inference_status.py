"""The status of an InferenceService: what is served, by which revision, and what each replica says of itself."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from trireme.resources.status import Condition, InputStatus, StatusModel


class ServiceState(StrEnum):
    """The one-word summary of the conditions; the STATE column."""

    PENDING = "Pending"
    REJECTED = "Rejected"
    WAITING = "WaitingForModel"
    STARTING = "Starting"
    READY = "Ready"
    UPDATING = "Updating"
    DEGRADED = "Degraded"
    FAILED = "Failed"
    STOPPED = "Stopped"


class ServiceCondition(StrEnum):
    """The conditions of a service; all of them are present from the operator's first visit."""

    ACCEPTED = "Accepted"
    MODEL_AVAILABLE = "ModelAvailable"
    ADAPTERS_LOADED = "AdaptersLoaded"
    READY = "Ready"


class ServedModelStatus(StatusModel):
    """The model of a revision."""

    uri: str = Field(description="Where its files come from.")
    digest: str | None = Field(
        default=None,
        description="sha256:<hex> of its manifest, or of its files' names and sums where it has none; absent until "
        "a replica has verified them.",
    )


class TargetStatus(StatusModel):
    """The revision that the spec asks for, frozen: an upgrade of the operator starts no new one."""

    revision: str = Field(description="Its name: a digest of what its pods are made from.")
    inputs_digest: str = Field(description="sha256:<hex> of the parts of the spec, and of the model, behind it.")
    image: str = Field(description="Image of its pods.")
    device_resource: str | None = Field(
        default=None,
        max_length=253,
        description="Extended resource of one device, where the spec names none and the operator's settings do.",
    )
    image_pull_secrets: list[str] = Field(
        default_factory=list,
        max_length=16,
        description="Pull secrets of its pods, where the spec names none and the operator's settings do.",
    )
    model: ServedModelStatus = Field(description="Its model.")
    since: datetime = Field(description="When it was first wanted.")


class LoadedAdapterStatus(StatusModel):
    """An adapter as a replica's vLLM lists it."""

    name: str = Field(description="Its name in the API.")
    uri: str = Field(description="Where its files came from.")
    digest: str = Field(default="", description="sha256:<hex> of its manifest or files.")


class ReplicaStatus(StatusModel):
    """One pod."""

    name: str = Field(description="Name of the pod.")
    revision: str = Field(description="Its revision.")
    node: str | None = Field(default=None, description="Its node.")
    ready: bool = Field(default=False, description="Whether the Service may lead to it.")
    state: str = Field(default="", description="How far it is, by its own word; empty while it does not answer.")
    reason: str = Field(default="", max_length=256, description="Why it is not ready.")
    message: str = Field(default="", max_length=4096, description="The same for people.")
    restarts: int = Field(default=0, ge=0, description="Times that its container was started again.")
    adapters: list[LoadedAdapterStatus] = Field(
        default_factory=list, max_length=64, description="Adapters that its vLLM lists at /v1/models."
    )


class ServiceStatus(StatusModel):
    """Observed state of an InferenceService."""

    observed_generation: int = Field(default=0, ge=0, description="metadata.generation that the operator last handled.")
    state: ServiceState = Field(default=ServiceState.PENDING, description="Summary of the conditions.")
    conditions: list[Condition] = Field(
        default_factory=list,
        max_length=16,
        description="All four are present from the first visit.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    url: str | None = Field(default=None, description="Base URL of the API at the Service's stable address.")
    dns_name: str | None = Field(default=None, description="Name of the Service in the cluster's DNS.")
    replicas: int = Field(default=0, ge=0, description="Pods that exist, of all revisions.")
    ready_replicas: int = Field(default=0, ge=0, description="Pods that the Service leads to.")
    selector: str = Field(default="", max_length=1024, description="Label selector of the pods, for autoscalers.")
    serving_revision: str | None = Field(default=None, description="Revision that the Service leads to.")
    target: TargetStatus | None = Field(default=None, description="Revision that the spec asks for.")
    model: ServedModelStatus | None = Field(default=None, description="Model of the revision that serves.")
    inputs: list[InputStatus] = Field(
        default_factory=list,
        max_length=64,
        description="Jobs whose model or adapters are served, from when each was first seen. Once recorded, that job "
        "may go.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["field"]},
    )
    pods: list[ReplicaStatus] = Field(
        default_factory=list,
        max_length=2048,
        description="Each pod as it is.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )

    def condition(self, kind: ServiceCondition) -> Condition | None:
        """The condition of one type, or None before the operator's first visit."""
        return next((c for c in self.conditions if c.type == kind), None)
