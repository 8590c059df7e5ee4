"""What the kinds share that change a trained model: where it comes from, what of it is trained, examples, steps."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from trireme.resources.base import Glob, IntOrAuto, RawObject, Strict
from trireme.resources.kinds import Choice, SpecRule
from trireme.resources.references import JobReference

MethodType = Literal["full", "lora", "qlora", "prefix", "promptTuning", "pTuning", "peft"]
PROMPT_METHODS = ("prefix", "promptTuning", "pTuning")


class ModelSource(Strict):
    """Where a model comes from: exactly one of job and uri."""

    job: JobReference | None = Field(
        default=None, description="Job whose exported model is taken; this job waits until it is there."
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
    def _exactly_one(self) -> "ModelSource":
        if (self.job is None) == (self.uri is None):
            raise ValueError("exactly one of job and uri must be set")
        return self

    def __str__(self) -> str:
        return str(self.job or self.uri)


class Lora(Strict):
    """Low-rank adapters beside matrices: W + (alpha / rank) B A (Hu et al. 2021)."""

    rank: int | None = Field(default=None, ge=1, le=65536, description="Rank of the update B A; 8 when left out.")
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
        description="full: all weights. lora: low-rank adapters. qlora: the same on a base in 4 bits. prefix, "
        "promptTuning, pTuning: virtual tokens. peft: any other method of the peft library.",
    )
    lora: Lora = Field(default_factory=Lora, description="The adapter of types lora and qlora.")
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
        pattern=r"^((s3://[a-z0-9]|file:///|/).*|python://stdlib)$",
        description="s3://bucket/prefix, the path of a file or folder on a mounted volume (file:///path or /path), or "
        "python://stdlib: for trying things out, records (name, signature, docstring, other, source) of the documented "
        "functions of the standard library in the trainer image; other is another function's docstring.",
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


class TuningOptimizer(Strict):
    """AdamW with decoupled weight decay on matrices only."""

    name: Literal["adamw"] = Field(default="adamw", description="Algorithm of the updates.")
    learning_rate: float | None = Field(
        default=None, gt=0, le=10, description="Peak learning rate; chosen by what is trained when left out."
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="Decay of the second moment.")
    eps: float = Field(default=1e-8, gt=0, le=1, description="Added to the denominator.")
    weight_decay: float = Field(default=0.0, ge=0, le=10, description="Decoupled weight decay.")


class TuningSchedule(Strict):
    """Linear warm-up, then a decay to zero at the end of the run."""

    kind: Literal["cosine", "linear", "constant"] = Field(default="cosine", description="Form of the decay.")
    warmup_ratio: float = Field(default=0.03, ge=0, le=1, description="Warm-up as a share of all steps.")


class TuningTraining(Strict):
    """How the model is taught: at most one of steps and epochs."""

    global_batch_size: int = Field(
        default=32, ge=1, le=1_048_576, description="Examples (of packed ones, rows) per step, over all ranks."
    )
    steps: int | None = Field(default=None, ge=1, le=100_000_000, description="Optimizer steps of the whole run.")
    epochs: float | None = Field(
        default=None, gt=0, le=10_000, description="Passes over the examples; chosen when neither is set."
    )
    micro_batch_size: IntOrAuto = Field(
        default="auto", description="Examples per forward pass of one rank. A number or auto."
    )
    recompute: bool = Field(default=False, description="Recompute activations in the backward pass.")
    optimizer: TuningOptimizer = Field(default_factory=TuningOptimizer, description="Optimizer and its constants.")
    schedule: TuningSchedule = Field(default_factory=TuningSchedule, description="Learning rate over the run.")
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
    def _at_most_one(self) -> "TuningTraining":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("at most one of steps and epochs may be set")
        return self


class Output(Strict):
    """What is exported."""

    merge: bool = Field(
        default=False,
        description="Of an adapter: merge it into the base model and export the merged model, the adapter beside it.",
    )


class Choices:
    """What was left out and chosen, with the rule for each, in order."""

    def __init__(self) -> None:
        self._made: list[Choice] = []

    def __call__(self, field: str, value: Any, rule: str) -> Any:
        """The value, which is recorded as chosen for the field (dotted, from the spec)."""
        self._made.append(Choice(field, str(value), rule))
        return value

    @property
    def made(self) -> tuple[Choice, ...]:
        """All of them."""
        return tuple(self._made)


def settle_method(method: Method, choose: Choices) -> Method:
    """The method with its rank, scale or number of virtual tokens filled in."""
    if method.type in ("lora", "qlora"):
        lora = method.lora
        rank = lora.rank or choose("method.lora.rank", 8, "4 to 8 for one task, 8 and more for instruction tuning")
        alpha = lora.alpha or choose("method.lora.alpha", float(rank), "the rank: then only the learning rate is tuned")
        return method.model_copy(update={"lora": lora.model_copy(update={"rank": rank, "alpha": alpha})})
    if method.type in PROMPT_METHODS and method.virtual_tokens is None:
        tokens = choose("method.virtualTokens", 20, "10 to 50 serve; 20 in most published work")
        return method.model_copy(update={"virtual_tokens": tokens})
    return method


def settle_training(
    training: TuningTraining,
    choose: Choices,
    *,
    epochs: tuple[float, str],
    learning_rate: tuple[float, str],
    zero_stage: tuple[int, str],
) -> TuningTraining:
    """The training with passes, rate and ZeRO stage filled in: each a value and the rule that chose it."""
    if training.steps is None and training.epochs is None:
        training = training.model_copy(update={"epochs": choose("training.epochs", *epochs)})
    if training.optimizer.learning_rate is None:
        rate = choose("training.optimizer.learningRate", *learning_rate)
        training = training.model_copy(
            update={"optimizer": training.optimizer.model_copy(update={"learning_rate": rate})}
        )
    if training.zero_stage is None:
        training = training.model_copy(update={"zero_stage": choose("training.zeroStage", *zero_stage)})
    return training


def fitting_zero_stage(method: MethodType, world_size: int) -> tuple[int, str]:
    """What ranks share out where that is left out, and why."""
    if world_size == 1:
        return 0, "there is one rank"
    if method == "full":
        return 2, "all weights train on many ranks: they share out gradients and optimizer state"
    return 0, "little is trained: nothing worth sharing out"


TUNING_RULES = (
    SpecRule(
        "method",
        "(has(self.type) && self.type == 'peft') == has(self.peft)",
        "peft must be set for type peft, and for no other",
    ),
    SpecRule("training", "!(has(self.steps) && has(self.epochs))", "at most one of steps and epochs may be set"),
    SpecRule(
        "data.validation", "has(self.fraction) != has(self.sources)", "exactly one of fraction and sources must be set"
    ),
)
"""Rules of the parts that these kinds share, which each has at the same place."""


def source_rule(path: str) -> SpecRule:
    """The rule of a ModelSource at this path of the spec."""
    return SpecRule(path, "has(self.job) != has(self.uri)", "exactly one of job and uri must be set")
