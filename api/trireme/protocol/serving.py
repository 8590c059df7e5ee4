"""What an inference pod is told of its service, and what it reports: files that are mounted, and GET /v1/report."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from trireme.protocol.base import METRICS_PORT, WireModel
from trireme.protocol.job import StoreConfig
from trireme.protocol.messages import PROTOCOL_VERSION

STATUS_PORT = 8081
"""Port of a pod's report and probes."""

ServingTask = Literal["chat", "completion", "embedding"]


class ServiceIdentity(WireModel):
    """Which service this is."""

    namespace: str
    name: str
    uid: str


class ModelSource(WireModel):
    """A model's or an adapter's files; with a digest when it is known which they must be."""

    uri: str = Field(description="s3://bucket/prefix, file:///path or /path.")
    digest: str | None = Field(default=None, description="sha256:<hex> of the manifest that the files must have.")


class AdapterSource(ModelSource):
    """An adapter that is served under a name of its own."""

    name: str
    id: str = Field(description="Of all that is said of it here, to tell one version of a name from another.")
    base: str | None = Field(
        default=None, description="What the adapter's own config calls the served model, where that is not its URI."
    )


class AdapterRoom(WireModel):
    """What the engine holds ready for adapters."""

    count: int = Field(ge=1, description="Adapters at a time.")
    rank: int = Field(ge=1, description="Highest rank.")


class ServingConfig(WireModel):
    """Everything about one revision of a service: the value of TRIREME_SERVICE in its pods."""

    protocol: str = PROTOCOL_VERSION
    service: ServiceIdentity
    revision: str
    store: StoreConfig | None = Field(default=None, description="Absent where nothing is fetched from a store.")
    model: ModelSource
    served_name: str = Field(description="The model's name in the API.")
    task: ServingTask
    chat_template: str | None = None
    dtype: str = "auto"
    max_model_length: int | None = Field(default=None, description="Tokens of prompt and answer; absent: the model's.")
    max_concurrency: int = Field(description="Sequences computed at the same time.")
    kv_cache_bytes: int | None = Field(default=None, description="Absent: what the engine finds free.")
    devices: int = Field(default=1, ge=1, description="Devices that share the model out (tensor parallelism).")
    on_cpu: bool = False
    adapter_room: AdapterRoom | None = Field(default=None, description="Absent: no adapter can be loaded.")
    extra_arguments: list[str] = Field(default_factory=list)
    port: int
    status_port: int = STATUS_PORT
    metrics_port: int = METRICS_PORT
    start_deadline_seconds: int
    drain_seconds: int


class AdapterList(WireModel):
    """The adapters that are wanted: the content of the service's ConfigMap that follows the spec."""

    adapters: list[AdapterSource] = Field(default_factory=list)


class ReplicaState(StrEnum):
    """How far a replica is."""

    FETCHING = "Fetching"
    CHECKING = "Checking"
    LOADING = "Loading"
    READY = "Ready"
    DRAINING = "Draining"
    FAILED = "Failed"


class LoadedAdapter(WireModel):
    """An adapter as the engine itself lists it."""

    name: str
    id: str = Field(default="", description="As it was given; empty of what nobody asked for.")
    uri: str
    digest: str = ""


class RefusedAdapter(WireModel):
    """An adapter that is wanted and not loaded, and why."""

    name: str
    uri: str
    reason: str
    message: str


class ReplicaReport(WireModel):
    """What a replica says of itself."""

    protocol: str = PROTOCOL_VERSION
    service_uid: str
    revision: str
    state: ReplicaState
    reason: str = Field(default="", description="Why it is not ready: one word of docs/inferenceservice.md.")
    message: str = Field(default="", description="The same for people, with the first offending file.")
    model: ModelSource | None = Field(default=None, description="The model that it has, once its files are verified.")
    adapters: list[LoadedAdapter] = Field(default_factory=list)
    refused: list[RefusedAdapter] = Field(default_factory=list)
