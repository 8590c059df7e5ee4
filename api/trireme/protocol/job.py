"""What a training pod is told about its job: the content of the immutable ConfigMap, mounted as job.json."""

from typing import Any

from pydantic import Field

from trireme.protocol.base import WireModel
from trireme.protocol.messages import ModelRef


class JobIdentity(WireModel):
    """Which job this is."""

    kind: str
    namespace: str
    name: str
    uid: str


class StoreConfig(WireModel):
    """Where the object store is. Credentials come from the pod or workload identity, never from here."""

    uri: str = Field(description="s3://bucket/prefix under which every key of the job lies.")
    endpoint: str | None = Field(default=None, description="URL of an S3-compatible server; absent means AWS.")
    region: str | None = None
    path_style: bool = False
    ca_bundle_file: str | None = Field(default=None, description="Path in the pod of a PEM bundle.")


class JobConfig(WireModel):
    """Everything about a job that never changes while it runs."""

    protocol: str
    job: JobIdentity
    program: str = Field(description="Which trainer program the ranks run, for example 'pretrain'.")
    spec: dict[str, Any] = Field(description="The job's spec with all defaults filled in, by its kind's model.")
    plan: dict[str, Any] = Field(description="trireme.planning.Plan as frozen at admission.")
    slots: int = Field(ge=1, description="Pods of the job.")
    ranks_per_slot: int = Field(ge=1, description="Ranks (devices) in each pod.")
    store: StoreConfig
    inputs: dict[str, ModelRef] = Field(
        default_factory=dict, description="Models of other jobs, by the field of the spec that names the job."
    )

    @property
    def world_size(self) -> int:
        """Ranks of the whole job."""
        return self.slots * self.ranks_per_slot
