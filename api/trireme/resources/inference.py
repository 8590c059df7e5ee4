"""The InferenceService: a model, and adapters beside it, behind an OpenAI-compatible API."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from trireme.resources.base import Quantity, Strict, parse_quantity_bytes
from trireme.resources.common import CaBundle, Credentials, PodSettings
from trireme.resources.inference_status import ServiceStatus
from trireme.resources.kinds import KindInfo, PrintColumn, Scale, SpecRule
from trireme.resources.references import JobReference, ModelKind, References
from trireme.resources.rules import credentials_rule, pod_rules

MODEL_JOB = "model.job"
MAX_ADAPTERS = 32
MIN_KV_CACHE_BYTES = 1 << 20
ServedName = Annotated[
    str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9._/:]*[A-Za-z0-9])?$")
]
"""The name of a model in the API: what a client sends as `model`."""
ExtraArgument = Annotated[str, Field(min_length=3, max_length=1024, pattern=r"^--[a-z0-9][-a-z0-9.]*(=.*)?$")]
SourceUri = Annotated[str, Field(min_length=2, max_length=1024, pattern=r"^(s3://[a-z0-9]|file:///|/).*$")]

DENIED_ARGUMENTS = (
    "--model",
    "--tokenizer",
    "--hf-config-path",
    "--served-model-name",
    "--runner",
    "--convert",
    "--task",
    "--dtype",
    "--max-model-len",
    "--max-num-seqs",
    "--kv-cache-memory-bytes",
    "--tensor-parallel-size",
    "--host",
    "--port",
    "--uds",
    "--grpc-port",
    "--root-path",
    "--api-key",
    "--api-server-count",
    "--headless",
    "--ssl-keyfile",
    "--ssl-certfile",
    "--ssl-ca-certs",
    "--config",
    "--middleware",
    "--enable-lora",
    "--lora-modules",
    "--max-loras",
    "--max-cpu-loras",
    "--max-lora-rank",
    "--chat-template",
    "--load-format",
    "--download-dir",
    "--trust-remote-code",
    "--trust-request-chat-template",
    "--allowed-local-media-path",
    "--shutdown-timeout",
    "--worker-cls",
    "--worker-extension-cls",
    "--logits-processors",
    "--tool-parser-plugin",
    "--reasoning-parser-plugin",
    "--io-processor-plugin",
)
"""Flags of vLLM that the spec's own fields set, or that would have it run code or serve what nobody verified."""


def denied_flag(argument: str) -> str | None:
    """The denied flag that an argument sets, also when it is abbreviated, as argparse allows."""
    flag = argument.partition("=")[0]
    exact = [denied for denied in DENIED_ARGUMENTS if denied == flag]
    return next(iter([*exact, *(denied for denied in DENIED_ARGUMENTS if denied.startswith(flag))]), None)


class ServedModel(Strict):
    """The model to serve: exactly one of job and uri."""

    job: JobReference | None = Field(
        default=None, description="Job whose exported model is served; the service waits until it is there."
    )
    uri: SourceUri | None = Field(
        default=None,
        description="Folder of a model in Hugging Face layout (config.json, safetensors, tokenizer): "
        "s3://bucket/prefix, or a path on a volume that is mounted in the pods.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> "ServedModel":
        if (self.job is None) == (self.uri is None):
            raise ValueError("exactly one of job and uri must be set")
        return self


class AdapterJob(JobReference):
    """A job of the same namespace whose exported adapter is taken; the adapter is loaded once it is there."""

    kind: ModelKind = Field(default="FineTuneJob", description="Kind of the job.")


class Adapter(Strict):
    """A LoRA adapter that is served beside the model: exactly one of job and uri."""

    name: ServedName = Field(description="Its name in the API: what a client sends as `model`.")
    job: AdapterJob | None = Field(default=None, description="Job whose exported adapter is loaded.")
    uri: SourceUri | None = Field(
        default=None,
        description="Folder with adapter_config.json and adapter_model.safetensors, or with these in adapter/.",
    )
    base: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description="What the adapter's own config calls its base, where that is another name of the served model. "
        "Left out: an adapter whose base is not the served model's URI or digest is refused.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> "Adapter":
        if (self.job is None) == (self.uri is None):
            raise ValueError("exactly one of job and uri must be set")
        return self


class AdapterLimits(Strict):
    """What the engine holds ready for adapters. A change makes a new revision; adapters within it do not."""

    count: int = Field(default=8, ge=1, le=MAX_ADAPTERS, description="Adapters that can be loaded at a time.")
    rank: Literal[8, 16, 32, 64, 128, 256] = Field(default=64, description="Highest rank of an adapter.")


class Store(Strict):
    """How pods reach the object store that model and adapters are fetched from."""

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


class ModelCache(Strict):
    """Where fetched files are kept."""

    host_path: str | None = Field(
        default=None,
        max_length=512,
        pattern=r"^/.*[^/]$",
        description="Directory of each node, shared by all replicas there and kept when they go; the pods' user must "
        "be able to write to it. Left out: each pod has a copy of its own.",
    )


class ServingPods(PodSettings):
    """The pods that serve."""

    devices: int = Field(default=1, ge=1, le=64, description="Devices of a replica; they share the model out.")


class InferenceSpec(Strict):
    """The spec of an InferenceService. Everything may change at any time.

    A change of replicas, adapters, the service's port or the budget is made in place; any other makes a new revision.
    """

    model: ServedModel = Field(description="The model to serve.")
    served_name: ServedName | None = Field(
        default=None, description="The model's name in the API; the service's own when left out."
    )
    task: Literal["chat", "completion", "embedding"] = Field(
        description="What is asked of the model. chat: /v1/chat/completions with the model's template, and what "
        "completion has. completion: /v1/completions. embedding: /v1/embeddings."
    )
    chat_template: str | None = Field(
        default=None,
        min_length=1,
        max_length=16384,
        description="Jinja template of task chat; the model's own when left out.",
    )
    adapters: list[Adapter] = Field(
        default_factory=list,
        max_length=MAX_ADAPTERS,
        description="LoRA adapters served beside the model, each under its own name.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    adapter_limits: AdapterLimits | None = Field(
        default=None,
        description="Room for adapters. Left out: that of the defaults where there is an adapter, else none.",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="Type of weights and activations; auto: the model's own."
    )
    max_model_length: int | None = Field(
        default=None, ge=1, le=16_777_216, description="Most tokens of prompt and answer; the model's when left out."
    )
    max_concurrency: int = Field(default=256, ge=1, le=65536, description="Sequences that a replica computes at once.")
    kv_cache: Quantity | None = Field(
        default=None, description="Memory of a replica's key-value cache. Left out: what is free on the devices."
    )
    replicas: int = Field(default=1, ge=0, le=1024, description="Pods that serve.")
    pods: ServingPods = Field(description="The pods that serve.")
    store: Store = Field(default_factory=Store, description="The object store of s3:// URIs.")
    cache: ModelCache = Field(default_factory=ModelCache, description="Where fetched files are kept.")
    disruption_budget: bool = Field(
        default=True,
        description="Where two replicas or more are wanted, have a PodDisruptionBudget let drains take one of those "
        "that serve at a time. False: none is made, for a budget of your own: of a pod with two, the API server "
        "refuses every eviction.",
    )
    port: int = Field(default=8000, ge=1, le=65535, description="Port of the Service.")
    startup_deadline_seconds: int = Field(
        default=1800,
        ge=10,
        le=86400,
        description="Time that a replica has to fetch the model, load it and answer, before it is started anew.",
    )
    drain_seconds: int = Field(
        default=60, ge=1, le=3600, description="Time that a replica has to finish its requests when it is to go."
    )
    extra_args: list[ExtraArgument] = Field(
        default_factory=list,
        max_length=64,
        description="Further arguments of vLLM's server, each --flag or --flag=value. What a field of the spec sets, "
        "or what loads code, is refused.",
    )

    @property
    def adapter_room(self) -> AdapterLimits | None:
        """What the engine holds ready for adapters; None where none can be loaded."""
        return self.adapter_limits or (AdapterLimits() if self.adapters else None)

    @field_validator("extra_args")
    @classmethod
    def _none_denied(cls, arguments: list[str]) -> list[str]:
        for argument in arguments:
            if denied := denied_flag(argument):
                raise ValueError(f"{argument.partition('=')[0]} is not allowed: it sets {denied}")
        return arguments

    @model_validator(mode="after")
    def _agrees(self) -> "InferenceSpec":
        if self.chat_template is not None and self.task != "chat":
            raise ValueError("chatTemplate may be set for task chat only")
        names = [adapter.name for adapter in self.adapters]
        if len(set(names)) != len(names):
            raise ValueError("adapters: two have the same name")
        if self.served_name in names:
            raise ValueError(f"adapters: {self.served_name} is the model's own name (servedName)")
        room = self.adapter_room
        if room is not None and len(names) > room.count:
            raise ValueError(f"adapters: {len(names)}, and adapterLimits.count is {room.count}")
        if self.adapters and self.task == "embedding":
            raise ValueError("adapters: none can be served for task embedding")
        if self.kv_cache is not None and parse_quantity_bytes(self.kv_cache) < MIN_KV_CACHE_BYTES:
            raise ValueError(f"kvCache: {self.kv_cache} is below {MIN_KV_CACHE_BYTES} bytes: is the unit missing?")
        return self


def adapter_field(name: str) -> str:
    """Field of the spec that names the job of an adapter."""
    return f"adapters[{name}].job"


def references(spec: InferenceSpec) -> References:
    """The jobs whose model and adapters are served."""
    model = {} if spec.model.job is None else {MODEL_JOB: spec.model.job}
    return model | {adapter_field(a.name): a.job for a in spec.adapters if a.job is not None}


class InferenceService(Strict):
    """An InferenceService as it stands in a manifest; metadata is Kubernetes' own."""

    api_version: Literal["trireme.dev/v1alpha1"]
    kind: Literal["InferenceService"]
    metadata: dict[str, Any]
    spec: InferenceSpec
    status: ServiceStatus | None = None


def _denied_rule() -> str:
    flags = ", ".join(f"'{flag}'" for flag in DENIED_ARGUMENTS)
    return f"self.all(a, ![{flags}].exists(d, a == d || a.startsWith(d + '=')))"


INFERENCE_SERVICE = KindInfo(
    kind="InferenceService",
    plural="inferenceservices",
    singular="inferenceservice",
    short_names=("tis",),
    description="A model, and adapters beside it, served behind an OpenAI-compatible API.",
    spec_model=InferenceSpec,
    status_model=ServiceStatus,
    print_columns=(
        PrintColumn("State", "string", ".status.state", "Summary of the conditions."),
        PrintColumn("Ready", "integer", ".status.readyReplicas", "Replicas that answer."),
        PrintColumn("Replicas", "integer", ".status.replicas", "Replicas that exist."),
        PrintColumn("Revision", "string", ".status.servingRevision", "Revision that answers."),
        PrintColumn("URL", "string", ".status.url", "Where clients ask."),
        PrintColumn("Model", "string", ".status.model.uri", "The model that is served.", priority=1),
        PrintColumn("Age", "date", ".metadata.creationTimestamp", "Age of the service."),
    ),
    mutable_paths=tuple(field.alias or name for name, field in InferenceSpec.model_fields.items()),
    rules=(
        *pod_rules("pods"),
        credentials_rule("store.credentials"),
        SpecRule("model", "has(self.job) != has(self.uri)", "exactly one of job and uri must be set"),
        SpecRule(
            "adapters",
            "self.all(a, has(a.job) != has(a.uri))",
            "exactly one of job and uri must be set for each adapter",
        ),
        SpecRule(
            "extraArgs",
            _denied_rule(),
            "extraArgs must not set what a field of the spec sets (such as model, port, dtype, enable-lora) or what "
            "loads code (such as trust-remote-code, middleware)",
        ),
        SpecRule("", "!has(self.chatTemplate) || self.task == 'chat'", "chatTemplate may be set for task chat only"),
        SpecRule(
            "",
            "!has(self.servedName) || !has(self.adapters) || self.adapters.all(a, a.name != self.servedName)",
            "the name of an adapter must not be the model's own (servedName)",
        ),
        SpecRule(
            "",
            "!has(self.adapters) || self.adapters.size() == 0 || self.task != 'embedding'",
            "no adapters can be served for task embedding",
        ),
        SpecRule(
            "",
            "!has(self.adapters) || !has(self.adapterLimits) || self.adapters.size() <= self.adapterLimits.count",
            "there are more adapters than adapterLimits.count",
        ),
    ),
    model_name=lambda spec: str(spec.model.job or spec.model.uri),
    references=references,
    scale=Scale(".spec.replicas", ".status.replicas", ".status.selector"),
)
