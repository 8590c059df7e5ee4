"""FineTuneJob: teach a trained model a task with examples, all of its weights or a small adapter."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from trireme.planning.data_parallel import DataParallelPlan, plan_data_parallel
from trireme.resources.base import Glob, IntOrAuto, RawObject, Strict
from trireme.resources.common import TrainingJobSpec
from trireme.resources.kinds import Choice, JobKind, SpecRule
from trireme.resources.references import JobReference, References
from trireme.resources.rules import JOB_COLUMNS, JOB_MUTABLE, JOB_RULES
from trireme.resources.status import JobStatus

BASE_JOB = "base.job"
FULL_LEARNING_RATE, ADAPTER_LEARNING_RATE, PROMPT_LEARNING_RATE = 2e-5, 2e-4, 1e-2
MethodType = Literal["full", "lora", "prefix", "promptTuning", "pTuning", "peft"]
PROMPT_METHODS = ("prefix", "promptTuning", "pTuning")


class Base(Strict):
    """The model to teach: exactly one of job and uri."""

    job: JobReference | None = Field(
        default=None, description="Job whose exported model is taught; this job waits until it is there."
    )
    uri: str | None = Field(
        default=None,
        min_length=2,
        max_length=1024,
        pattern=r"^(s3://[a-z0-9]|file:///|/).*$",
        description="Folder of a model in Hugging Face layout (config.json, safetensors, tokenizer): "
        "s3://bucket/prefix, or a path on a volume that is mounted on every node.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> "Base":
        if (self.job is None) == (self.uri is None):
            raise ValueError("exactly one of job and uri must be set")
        return self


class Lora(Strict):
    """Low-rank adapters beside matrices: W + (alpha / rank) B A (Hu et al. 2021)."""

    rank: int | None = Field(default=None, ge=1, le=65536, description="Rank of B A; 8 when left out.")
    alpha: float | None = Field(default=None, gt=0, le=1e6, description="Scale of the adapter; the rank when left out.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout of the adapter's input.")
    target_modules: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(
        default_factory=list,
        max_length=64,
        description="Names (or ends of names) of the matrices; all of attention and feed-forward when left out.",
    )
    modules_to_save: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(
        default_factory=list, max_length=16, description="Modules trained whole and saved with the adapter."
    )


class Method(Strict):
    """What is trained."""

    type: MethodType = Field(
        default="lora",
        description="full: all weights. lora: low-rank adapters. prefix, promptTuning, pTuning: virtual tokens. "
        "peft: any other method of the peft library.",
    )
    lora: Lora = Field(default_factory=Lora, description="Of type lora.")
    virtual_tokens: int | None = Field(
        default=None, ge=1, le=4096, description="Of types prefix, promptTuning and pTuning; 20 when left out."
    )
    peft: RawObject | None = Field(
        default=None,
        description="Of type peft: peft_type and the fields of that method's config under their names in the library.",
    )

    @model_validator(mode="after")
    def _fits_type(self) -> "Method":
        if (self.type == "peft") != (self.peft is not None):
            raise ValueError("peft must be set for type peft, and for no other")
        return self


class ExampleSource(Strict):
    """Examples of one origin, JSON lines."""

    uri: str = Field(
        min_length=2,
        max_length=1024,
        pattern=r"^(s3://[a-z0-9]|file:///|/).*$",
        description="s3://bucket/prefix, or the path of a file or folder on a mounted volume (file:///path or /path).",
    )
    weight: float = Field(
        default=1.0, gt=0, le=1e6, description="Share of examples drawn from this source, relative to the others'."
    )
    columns: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=128)]] = Field(
        default_factory=dict,
        max_length=8,
        description="Names of the fields where they differ from the task's: for example {output: answer}.",
    )
    include: list[Glob] = Field(
        default_factory=list, max_length=64, description="Files taken, relative to the uri; all when left out."
    )
    exclude: list[Glob] = Field(default_factory=list, max_length=256, description="Files left out of those taken.")


class ExampleValidation(Strict):
    """Examples kept out of training: exactly one of fraction and sources."""

    fraction: float | None = Field(
        default=None, gt=0, le=0.5, description="Share of the examples held out, chosen by their content's digest."
    )
    sources: list[ExampleSource] | None = Field(
        default=None, min_length=1, max_length=64, description="Examples of their own; left out of training."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> "ExampleValidation":
        if (self.fraction is None) == (self.sources is None):
            raise ValueError("exactly one of fraction and sources must be set")
        return self


class Examples(Strict):
    """What the model is taught with."""

    sources: list[ExampleSource] = Field(min_length=1, max_length=64, description="Where examples come from.")
    sequence_length: int = Field(default=2048, ge=8, le=16_777_216, description="Tokens of the longest example.")
    overlong: Literal["refuse", "truncate", "drop"] = Field(
        default="refuse",
        description="What happens to an example with more tokens. refuse: the job does not start, and names the first.",
    )
    validation: ExampleValidation | None = Field(
        default=None, description="Examples kept out of training; no validation when left out."
    )
    chat_template: str | None = Field(
        default=None,
        min_length=1,
        max_length=16384,
        description="Jinja template of task chat; the base model's own when left out.",
    )


class FineTuneOptimizer(Strict):
    """AdamW with decoupled weight decay on matrices only."""

    name: Literal["adamw"] = Field(default="adamw", description="Algorithm.")
    learning_rate: float | None = Field(
        default=None, gt=0, le=10, description="Peak learning rate; chosen by the method when left out."
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Decay of the second moment.")
    eps: float = Field(default=1e-8, gt=0, le=1, description="Added to the denominator.")
    weight_decay: float = Field(default=0.0, ge=0, le=10, description="Decoupled weight decay.")


class FineTuneSchedule(Strict):
    """Linear warm-up, then a decay to zero at the end of the run."""

    kind: Literal["cosine", "linear", "constant"] = Field(default="cosine", description="Form of the decay.")
    warmup_ratio: float = Field(default=0.03, ge=0, le=1, description="Warm-up as a share of all steps.")


class FineTuneTraining(Strict):
    """How the model is taught: at most one of steps and epochs."""

    global_batch_size: int = Field(default=32, ge=1, le=1_048_576, description="Examples per step, over all ranks.")
    steps: int | None = Field(default=None, ge=1, le=100_000_000, description="Optimizer steps of the whole run.")
    epochs: float | None = Field(
        default=None, gt=0, le=10_000, description="Passes over the examples; 3 when neither is set."
    )
    micro_batch_size: IntOrAuto = Field(
        default="auto", description="Examples per forward pass of one rank. A number or auto."
    )
    recompute: bool = Field(default=False, description="Recompute activations in the backward pass.")
    optimizer: FineTuneOptimizer = Field(default_factory=FineTuneOptimizer, description="Optimizer.")
    schedule: FineTuneSchedule = Field(default_factory=FineTuneSchedule, description="Learning rate over the run.")
    gradient_clip: float = Field(
        default=1.0, ge=0, le=1e6, description="Ceiling of the global gradient norm; 0 turns clipping off."
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="bf16", description="bf16: computation in bfloat16 with float32 trained weights."
    )
    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = Field(
        default=None,
        description="What ranks share out (DeepSpeed ZeRO): 0 nothing, 1 optimizer state, 2 also gradients, 3 also "
        "weights. Chosen when left out.",
    )
    seed: int = Field(default=0, ge=0, le=2_147_483_647, description="Seed of new weights, order and dropout.")
    validation_interval_steps: int = Field(
        default=100, ge=1, le=10_000_000, description="Steps between validations, where validation data is given."
    )

    @model_validator(mode="after")
    def _at_most_one(self) -> "FineTuneTraining":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("at most one of steps and epochs may be set")
        return self


class Output(Strict):
    """What is exported."""

    merge: bool = Field(
        default=False,
        description="Of an adapter: merge it into the base model and export the merged model, the adapter beside it.",
    )


class FineTuneSpec(TrainingJobSpec):
    """The spec of a FineTuneJob."""

    base: Base = Field(description="The model to teach.")
    method: Method = Field(default_factory=Method, description="What is trained.")
    task: Literal["instruction", "chat", "completion"] = Field(
        description="Form of the examples. instruction: instruction, input, output. chat: messages of role and content "
        "in the model's template. completion: prompt and completion, or text alone. Loss is on what the model answers."
    )
    data: Examples = Field(description="What the model is taught with.")
    training: FineTuneTraining = Field(default_factory=FineTuneTraining, description="How the model is taught.")
    output: Output = Field(default_factory=Output, description="What is exported.")

    @model_validator(mode="after")
    def _task_agrees(self) -> "FineTuneSpec":
        if self.data.chat_template is not None and self.task != "chat":
            raise ValueError("data.chatTemplate may be set for task chat only")
        if self.output.merge and self.method.type in PROMPT_METHODS:
            raise ValueError(f"output.merge: {self.method.type} trains virtual tokens, which are part of no weight")
        return self


def references(spec: FineTuneSpec) -> References:
    """The job whose model is taught."""
    return {} if spec.base.job is None else {BASE_JOB: spec.base.job}


def settle(spec: FineTuneSpec) -> tuple[FineTuneSpec, tuple[Choice, ...]]:
    """Fill in what was left out and depends on other fields, with the rule for each."""
    chosen: list[Choice] = []

    def choose(field: str, value: Any, rule: str) -> Any:
        chosen.append(Choice(field, str(value), rule))
        return value

    method, training = spec.method, spec.training
    if method.type == "lora":
        lora = method.lora
        rank = lora.rank or choose("method.lora.rank", 8, "4 to 8 for one task, 8 and more for instruction tuning")
        alpha = lora.alpha or choose("method.lora.alpha", float(rank), "the rank: then only the learning rate is tuned")
        method = method.model_copy(update={"lora": lora.model_copy(update={"rank": rank, "alpha": alpha})})
    if method.type in PROMPT_METHODS and method.virtual_tokens is None:
        tokens = choose("method.virtualTokens", 20, "10 to 50 serve; 20 in most published work")
        method = method.model_copy(update={"virtual_tokens": tokens})
    if training.steps is None and training.epochs is None:
        epochs = choose("training.epochs", 3.0, "supervised fine-tuning makes 2 to 5 passes")
        training = training.model_copy(update={"epochs": epochs})
    if training.optimizer.learning_rate is None:
        rate, why = _learning_rate(method.type)
        optimizer = training.optimizer.model_copy(
            update={"learning_rate": choose("training.optimizer.learningRate", rate, why)}
        )
        training = training.model_copy(update={"optimizer": optimizer})
    if training.zero_stage is None:
        many = spec.workers.world_size > 1
        stage = 2 if method.type == "full" and many else 0
        why = (
            "all weights train on many ranks: they share out gradients and optimizer state"
            if stage
            else ("little is trained: nothing worth sharing out" if many else "there is one rank")
        )
        training = training.model_copy(update={"zero_stage": choose("training.zeroStage", stage, why)})
    return spec.model_copy(update={"method": method, "training": training}), tuple(chosen)


def _learning_rate(method: MethodType) -> tuple[float, str]:
    if method == "full":
        return FULL_LEARNING_RATE, "all weights: 2e-5 or lower, far below pretraining's, against forgetting"
    if method in PROMPT_METHODS:
        return PROMPT_LEARNING_RATE, "virtual tokens are few and start at random: 1e-3 to 3e-1 in published work"
    return ADAPTER_LEARNING_RATE, "adapters bear ten times the rate of full fine-tuning: 1e-4 to 3e-4"


def make_plan(spec: FineTuneSpec) -> DataParallelPlan:
    """The plan of a settled spec. Raises PlanError."""
    assert spec.training.zero_stage is not None
    return plan_data_parallel(
        world_size=spec.workers.world_size,
        global_batch_size=spec.training.global_batch_size,
        micro_batch_size=spec.training.micro_batch_size,
        zero_stage=spec.training.zero_stage,
        accelerator=spec.workers.accelerator.kind,
    )


class FineTuneJob(Strict):
    """A FineTuneJob as it stands in a manifest; metadata is Kubernetes' own."""

    api_version: Literal["trireme.dev/v1alpha1"]
    kind: Literal["FineTuneJob"]
    metadata: dict[str, Any]
    spec: FineTuneSpec
    status: JobStatus | None = None


FINETUNE_JOB = JobKind(
    kind="FineTuneJob",
    plural="finetunejobs",
    singular="finetunejob",
    short_names=("ftj",),
    description="A trained model taught a task with examples: all of its weights, or a small adapter.",
    spec_model=FineTuneSpec,
    status_model=JobStatus,
    program="finetune",
    print_columns=JOB_COLUMNS,
    mutable_paths=JOB_MUTABLE,
    rules=(
        *JOB_RULES,
        SpecRule("base", "has(self.job) != has(self.uri)", "exactly one of job and uri must be set"),
        SpecRule(
            "method",
            "(has(self.type) && self.type == 'peft') == has(self.peft)",
            "peft must be set for type peft, and for no other",
        ),
        SpecRule("training", "!(has(self.steps) && has(self.epochs))", "at most one of steps and epochs may be set"),
        SpecRule(
            "data.validation",
            "has(self.fraction) != has(self.sources)",
            "exactly one of fraction and sources must be set",
        ),
        SpecRule(
            "",
            "!has(self.data.chatTemplate) || self.task == 'chat'",
            "data.chatTemplate may be set for task chat only",
        ),
    ),
    make_plan=make_plan,
    references=references,
    settle=settle,
)
