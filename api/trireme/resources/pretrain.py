"""PretrainJob: train a model from scratch (or on from a checkpoint) on raw text."""

from typing import Any, Literal

from pydantic import Field, model_validator

from trireme.planning import Plan, PlanRequest, plan
from trireme.planning.shape import PRESETS, LlamaShape
from trireme.resources.base import Glob, IntOrAuto, S3Uri, Strict
from trireme.resources.common import TrainingJobSpec, placement
from trireme.resources.kinds import JobKind, SpecRule
from trireme.resources.references import JobReference, References
from trireme.resources.rules import JOB_COLUMNS, JOB_MUTABLE, JOB_RULES
from trireme.resources.status import JobStatus

PresetName = Literal[
    "llama-7b",
    "llama2-7b",
    "llama2-13b",
    "llama2-70b",
    "llama3-8b",
    "llama3-70b",
    "llama3.1-405b",
    "llama3.2-1b",
    "llama3.2-3b",
    "tinyllama-1.1b",
]


START_FROM_JOB = "model.startFromJob"


class Model(Strict):
    """The model: exactly one of preset and shape."""

    family: Literal["llama"] = Field(
        default="llama", description="Architecture: RMSNorm, SwiGLU, rotary embeddings, grouped-query attention."
    )
    preset: PresetName | None = Field(default=None, description="Shape of a published model.")
    shape: LlamaShape | None = Field(
        default=None, description="Shape of an own model: fields of a Hugging Face config.json under their names there."
    )
    start_from: S3Uri | None = Field(
        default=None,
        description="Checkpoint (.../step-<n>) or exported model whose weights training starts from, of this shape.",
    )

    start_from_job: JobReference | None = Field(
        default=None,
        description="Job whose exported model training starts from, of this shape; this job waits until it is there.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> "Model":
        if (self.preset is None) == (self.shape is None):
            raise ValueError("exactly one of preset and shape must be set")
        if self.start_from is not None and self.start_from_job is not None:
            raise ValueError("at most one of startFrom and startFromJob may be set")
        return self


class Source(Strict):
    """Documents of one origin."""

    uri: str = Field(
        min_length=2,
        max_length=1024,
        pattern=r"^((s3://[a-z0-9]|file:///|/).*|python://stdlib)$",
        description="s3://bucket/prefix, or the path of a file or folder on a mounted volume (file:///path or /path), "
        "or python://stdlib: the standard library's sources in the trainer image, real text for trying things out.",
    )
    weight: float = Field(
        default=1.0, gt=0, le=1e6, description="Share of samples drawn from this source, relative to the others'."
    )
    format: Literal["auto", "text", "jsonl"] = Field(
        default="auto",
        description="text: a file is a document; jsonl: a line is. auto: jsonl for .jsonl and .jsonl.gz, else text.",
    )
    text_field: str = Field(
        default="text", min_length=1, max_length=128, description="Field of a jsonl line that holds the text."
    )
    include: list[Glob] = Field(
        default_factory=list, max_length=64, description="Files taken, relative to the uri; all when left out."
    )
    exclude: list[Glob] = Field(default_factory=list, max_length=256, description="Files left out of those taken.")


class Validation(Strict):
    """Documents kept out of training: exactly one of fraction and sources."""

    fraction: float | None = Field(
        default=None, gt=0, le=0.5, description="Share of the documents held out, chosen by their content's digest."
    )
    sources: list[Source] | None = Field(
        default=None, min_length=1, max_length=64, description="Documents of their own; left out of training."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> "Validation":
        if (self.fraction is None) == (self.sources is None):
            raise ValueError("exactly one of fraction and sources must be set")
        return self


class Tokenizer(Strict):
    """The tokenizer: trained once on the training documents, or taken from a URI."""

    uri: str | None = Field(
        default=None,
        min_length=2,
        max_length=1024,
        pattern=r"^(s3://[a-z0-9]|file:///|/).*$",
        description="Folder with a Hugging Face tokenizer (tokenizer.json). Left out: that of the weights to start "
        "from, or without such byte-level BPE is trained.",
    )
    vocab_size: int | None = Field(
        default=None,
        ge=300,
        le=1_048_576,
        description="Entries when trained; the model's vocab_size when left out, and never more.",
    )


class Data(Strict):
    """What the model is trained on."""

    sources: list[Source] = Field(min_length=1, max_length=64, description="Where documents come from.")
    sequence_length: int = Field(default=2048, ge=8, le=16_777_216, description="Tokens of a training sample.")
    packing: bool = Field(
        default=True,
        description="Join documents, an end token between them, and cut into samples; false: one document per sample.",
    )
    validation: Validation | None = Field(
        default=None, description="Documents kept out of training; no validation when left out."
    )
    tokenizer: Tokenizer = Field(default_factory=Tokenizer, description="How text becomes tokens.")


class Parallelism(Strict):
    """world size = tensor x pipeline x data x context = nodes x devicesPerNode; axes left out are chosen."""

    tensor: IntOrAuto = Field(
        default="auto", description="Devices that share each layer's matrices; stays inside a node. A number or auto."
    )
    pipeline: IntOrAuto = Field(
        default="auto", description="Stages that the layers are divided into. A number or auto."
    )
    data: IntOrAuto = Field(
        default="auto", description="Replicas of the model that share out the batch. A number or auto."
    )
    context: IntOrAuto = Field(
        default="auto", description="Devices that share each sequence. A number or auto; only 1 is available yet."
    )
    engine: Literal["megatron", "deepspeed"] = Field(
        default="megatron", description="Library that does the parallel work. deepspeed is not available yet."
    )


class Optimizer(Strict):
    """AdamW with decoupled weight decay on matrices only."""

    name: Literal["adamw"] = Field(default="adamw", description="Algorithm of the updates.")
    learning_rate: float = Field(default=3e-4, gt=0, le=10, description="Peak learning rate.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="Decay of the second moment.")
    eps: float = Field(default=1e-8, gt=0, le=1, description="Added to the denominator.")
    weight_decay: float = Field(default=0.1, ge=0, le=10, description="Decoupled weight decay.")


class Schedule(Strict):
    """Linear warm-up, then a decay to the end of the run. At most one of warmupSteps and warmupRatio."""

    kind: Literal["cosine", "linear", "constant"] = Field(default="cosine", description="Form of the decay.")
    warmup_steps: int | None = Field(default=None, ge=0, le=10_000_000, description="Steps of linear warm-up.")
    warmup_ratio: float | None = Field(
        default=None, ge=0, le=1, description="Warm-up as a share of all steps; 0.01 when neither is set."
    )
    min_learning_rate: float | None = Field(
        default=None, ge=0, le=10, description="Rate at the end; a tenth of the peak when left out."
    )

    @model_validator(mode="after")
    def _at_most_one(self) -> "Schedule":
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise ValueError("at most one of warmupSteps and warmupRatio may be set")
        return self


class Training(Strict):
    """How the model is trained: exactly one of steps and tokens."""

    global_batch_size: int = Field(ge=1, le=1_048_576, description="Sequences per optimizer step, over all ranks.")
    steps: int | None = Field(default=None, ge=1, le=100_000_000, description="Optimizer steps of the whole run.")
    tokens: int | None = Field(
        default=None, ge=1, le=1_000_000_000_000_000, description="Tokens of the whole run, rounded up to whole steps."
    )
    micro_batch_size: IntOrAuto = Field(
        default="auto", description="Sequences per forward pass of one rank. A number or auto."
    )
    recompute: Literal["auto", "none", "full"] = Field(
        default="auto", description="Recompute activations in the backward pass; auto: only where memory asks for it."
    )
    optimizer: Optimizer = Field(default_factory=Optimizer, description="Optimizer and its constants.")
    schedule: Schedule = Field(default_factory=Schedule, description="Learning rate over the run.")
    gradient_clip: float = Field(
        default=1.0, ge=0, le=1e6, description="Ceiling of the global gradient norm; 0 turns clipping off."
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="bf16", description="bf16: computation in bfloat16 with float32 master weights."
    )
    seed: int = Field(default=0, ge=0, le=2_147_483_647, description="Seed of initial weights and sample order.")
    validation_interval_steps: int = Field(
        default=100, ge=1, le=10_000_000, description="Steps between validations, where validation data is given."
    )
    validation_batches: int = Field(
        default=8, ge=1, le=100_000, description="Global batches of validation data used each time."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> "Training":
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("exactly one of steps and tokens must be set")
        return self

    @model_validator(mode="after")
    def _rates_agree(self) -> "Training":
        lowest, peak = self.schedule.min_learning_rate, self.optimizer.learning_rate
        if lowest is not None and lowest > peak:
            raise ValueError(f"schedule.minLearningRate {lowest:g} exceeds optimizer.learningRate {peak:g}")
        return self

    @property
    def min_learning_rate(self) -> float:
        """Rate at the end of the run."""
        given = self.schedule.min_learning_rate
        return self.optimizer.learning_rate / 10 if given is None else given

    def total_steps(self, sequence_length: int) -> int:
        """Optimizer steps of the whole run."""
        if self.steps is not None:
            return self.steps
        assert self.tokens is not None
        return -(-self.tokens // (self.global_batch_size * sequence_length))

    def warmup_steps(self, sequence_length: int) -> int:
        """Steps of linear warm-up."""
        if self.schedule.warmup_steps is not None:
            return self.schedule.warmup_steps
        ratio = 0.01 if self.schedule.warmup_ratio is None else self.schedule.warmup_ratio
        return round(ratio * self.total_steps(sequence_length))


class PretrainSpec(TrainingJobSpec):
    """The spec of a PretrainJob."""

    model: Model = Field(description="What is trained.")
    data: Data = Field(description="What it is trained on.")
    training: Training = Field(description="How it is trained.")
    parallelism: Parallelism = Field(default_factory=Parallelism, description="How the work is divided over ranks.")

    @property
    def shape(self) -> LlamaShape:
        """The model's shape with everything filled in."""
        given = PRESETS[self.model.preset] if self.model.preset else self.model.shape
        assert given is not None
        filled = {
            "num_key_value_heads": given.key_value_heads,
            "head_dim": given.head_size,
            "max_position_embeddings": given.max_position_embeddings or self.data.sequence_length,
        }
        return given.model_copy(update=filled)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.training.total_steps(self.data.sequence_length)

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warm-up."""
        return self.training.warmup_steps(self.data.sequence_length)

    @property
    def tokenizer_vocab_size(self) -> int:
        """Entries of a tokenizer trained for this job."""
        return self.data.tokenizer.vocab_size or self.shape.vocab_size

    @model_validator(mode="after")
    def _lengths_agree(self) -> "PretrainSpec":
        if self.warmup_steps > self.total_steps:
            raise ValueError(
                f"training.schedule.warmupSteps {self.warmup_steps} exceeds the {self.total_steps} steps of the run"
            )
        longest, length = self.shape.max_position_embeddings, self.data.sequence_length
        if longest is not None and length > longest:
            raise ValueError(f"data.sequenceLength {length} exceeds the model's max_position_embeddings {longest}")
        if self.tokenizer_vocab_size > self.shape.vocab_size:
            raise ValueError(
                f"data.tokenizer.vocabSize {self.tokenizer_vocab_size} exceeds the model's vocab_size "
                f"{self.shape.vocab_size}"
            )
        return self


def plan_request(spec: PretrainSpec) -> PlanRequest:
    """What the planner needs to know of a PretrainJob."""
    return PlanRequest(
        model=spec.shape,
        sequence_length=spec.data.sequence_length,
        global_batch_size=spec.training.global_batch_size,
        precision=spec.training.precision,
        micro_batch_size=spec.training.micro_batch_size,
        recompute=spec.training.recompute,
        tensor=spec.parallelism.tensor,
        pipeline=spec.parallelism.pipeline,
        data=spec.parallelism.data,
        context=spec.parallelism.context,
        engine=spec.parallelism.engine,
        **placement(spec),
    )


def make_plan(spec: PretrainSpec) -> Plan:
    """The layout of a job. Raises trireme.planning.PlanError."""
    return plan(plan_request(spec))


def references(spec: PretrainSpec) -> References:
    """The job whose model training starts from."""
    job = spec.model.start_from_job
    return {} if job is None else {START_FROM_JOB: job}


class PretrainJob(Strict):
    """A PretrainJob as it stands in a manifest; metadata is Kubernetes' own."""

    api_version: Literal["trireme.dev/v1alpha1"]
    kind: Literal["PretrainJob"]
    metadata: dict[str, Any]
    spec: PretrainSpec
    status: JobStatus | None = None


PRETRAIN_JOB = JobKind(
    kind="PretrainJob",
    plural="pretrainjobs",
    singular="pretrainjob",
    short_names=("ptj",),
    description="A language model trained from scratch on raw text, from manifest to exported model.",
    spec_model=PretrainSpec,
    status_model=JobStatus,
    program="pretrain",
    print_columns=JOB_COLUMNS,
    mutable_paths=JOB_MUTABLE,
    rules=(
        *JOB_RULES,
        # An API server checks a default by itself, as it is written: {} here, so no field can be taken for granted.
        SpecRule(
            "parallelism",
            "!has(self.engine) || self.engine != 'deepspeed'",
            "engine deepspeed is not available yet; use megatron",
        ),
        SpecRule(
            "parallelism",
            "!has(self.context) || type(self.context) == string || self.context == 1",
            "context parallelism is not available yet; leave it out or use 1",
        ),
        SpecRule("model", "has(self.preset) != has(self.shape)", "exactly one of preset and shape must be set"),
        SpecRule(
            "model",
            "!(has(self.startFrom) && has(self.startFromJob))",
            "at most one of startFrom and startFromJob may be set",
        ),
        SpecRule(
            "model.shape",
            "has(self.head_dim) || self.hidden_size % self.num_attention_heads == 0",
            "hidden_size must be divisible by num_attention_heads, or head_dim be set",
        ),
        SpecRule(
            "model.shape",
            "!has(self.num_key_value_heads) || self.num_attention_heads % self.num_key_value_heads == 0",
            "num_attention_heads must be divisible by num_key_value_heads",
        ),
        SpecRule("training", "has(self.steps) != has(self.tokens)", "exactly one of steps and tokens must be set"),
        SpecRule(
            "training.schedule",
            "!(has(self.warmupSteps) && has(self.warmupRatio))",
            "at most one of warmupSteps and warmupRatio may be set",
        ),
        SpecRule(
            "training",
            "!has(self.steps) || !has(self.schedule.warmupSteps) || self.schedule.warmupSteps <= self.steps",
            "schedule.warmupSteps must not exceed steps",
        ),
        SpecRule(
            "training",
            "!has(self.schedule.minLearningRate) || self.schedule.minLearningRate <= self.optimizer.learningRate",
            "schedule.minLearningRate must not exceed optimizer.learningRate",
        ),
        SpecRule(
            "data.validation",
            "has(self.fraction) != has(self.sources)",
            "exactly one of fraction and sources must be set",
        ),
        SpecRule(
            "",
            "!has(self.model.shape) || !has(self.model.shape.max_position_embeddings) || "
            "self.data.sequenceLength <= self.model.shape.max_position_embeddings",
            "data.sequenceLength must not exceed the model's max_position_embeddings",
        ),
        SpecRule(
            "",
            "!has(self.model.shape) || !has(self.data.tokenizer.vocabSize) || "
            "self.data.tokenizer.vocabSize <= self.model.shape.vocab_size",
            "data.tokenizer.vocabSize must not exceed the model's vocab_size",
        ),
    ),
    make_plan=make_plan,
    model_name=lambda spec: spec.model.preset or "shape",
    references=references,
)
