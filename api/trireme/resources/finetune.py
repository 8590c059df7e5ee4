"""FineTuneJob: teach a trained model a task with examples, all of its weights or a small adapter."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from trireme.planning.data_parallel import DataParallelPlan, plan_data_parallel
from trireme.resources.base import Strict
from trireme.resources.common import TrainingJobSpec, placement
from trireme.resources.kinds import Choice, JobKind, SpecRule
from trireme.resources.references import References
from trireme.resources.rules import JOB_COLUMNS, JOB_MUTABLE, JOB_RULES
from trireme.resources.status import JobStatus
from trireme.resources.tuning import (
    PROMPT_METHODS,
    TUNING_RULES,
    Choices,
    ExampleSource,
    ExampleValidation,
    Method,
    MethodType,
    ModelSource,
    Output,
    TuningTraining,
    fitting_zero_stage,
    settle_method,
    settle_training,
    source_rule,
)

__all__ = [
    "BASE_JOB",
    "FINETUNE_JOB",
    "ExampleSource",
    "Examples",
    "FineTuneJob",
    "FineTuneSpec",
    "Method",
    "make_plan",
    "references",
    "settle",
]

BASE_JOB = "base.job"
FULL_LEARNING_RATE, ADAPTER_LEARNING_RATE, PROMPT_LEARNING_RATE = 2e-5, 2e-4, 1e-2


class Examples(Strict):
    """What the model is taught with."""

    sources: list[ExampleSource] = Field(min_length=1, max_length=64, description="Where examples come from.")
    sequence_length: int = Field(default=2048, ge=8, le=16_777_216, description="Tokens of the longest example.")
    overlong: Literal["refuse", "truncate", "drop"] = Field(
        default="refuse",
        description="What happens to an example with more tokens. refuse: the job does not start, and names the first.",
    )
    packing: bool = Field(
        default=False,
        description="Put several examples into one row of up to sequenceLength tokens, none of which sees another; "
        "batch sizes then count rows.",
    )
    labels: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(
        default_factory=list,
        max_length=1024,
        description="Of task classification: names of the classes in the order of their numbers; found in the "
        "examples when left out.",
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


class EarlyStopping(Strict):
    """Stop when validation no longer improves, and export the weights of the best validation."""

    patience: int = Field(
        default=3, ge=1, le=10_000, description="Validations in a row without a better loss after which the job ends."
    )
    least_improvement: float = Field(
        default=0.0, ge=0, le=100, description="By how many nats a loss must be below the best one to be better."
    )


class FineTuneTraining(TuningTraining):
    """How the model is taught: at most one of steps and epochs."""

    early_stopping: EarlyStopping | None = Field(
        default=None,
        description="Stop before the last step where validation no longer improves; never when left out.",
    )


class FineTuneSpec(TrainingJobSpec):
    """The spec of a FineTuneJob."""

    base: ModelSource = Field(description="The model to teach.")
    method: Method = Field(default_factory=Method, description="What is trained.")
    task: Literal["instruction", "chat", "completion", "classification"] = Field(
        description="Form of the examples. instruction: instruction, input, output. chat: messages of role and content "
        "in the model's template. completion: prompt and completion, or text alone. Loss is on what the model answers. "
        "classification: text and label; the model gets a head that names the class."
    )
    data: Examples = Field(description="What the model is taught with.")
    training: FineTuneTraining = Field(default_factory=FineTuneTraining, description="How the model is taught.")
    output: Output = Field(default_factory=Output, description="What is exported.")

    @model_validator(mode="after")
    def _task_agrees(self) -> "FineTuneSpec":
        if self.data.chat_template is not None and self.task != "chat":
            raise ValueError("data.chatTemplate may be set for task chat only")
        if self.task == "classification":
            if self.data.packing:
                raise ValueError("data.packing: of task classification each row is one text")
            if self.method.type in ("promptTuning", "pTuning"):
                raise ValueError(
                    f"method.type {self.method.type}: the class is read at the last token that is no padding, which "
                    "cannot be told among virtual tokens; use prefix, lora or full"
                )
        elif self.data.labels:
            raise ValueError("data.labels may be set for task classification only")
        if self.training.early_stopping is not None and self.data.validation is None:
            raise ValueError("training.earlyStopping needs data.validation")
        if len(set(self.data.labels)) != len(self.data.labels) or len(self.data.labels) == 1:
            raise ValueError("data.labels must be two or more different names")
        if self.data.packing and self.method.type in PROMPT_METHODS:
            raise ValueError(
                f"data.packing: the virtual tokens of {self.method.type} stand before a row, and not before each "
                "example in it"
            )
        if self.output.merge and self.method.type in PROMPT_METHODS:
            raise ValueError(f"output.merge: {self.method.type} trains virtual tokens, which are part of no weight")
        return self


def references(spec: FineTuneSpec) -> References:
    """The job whose model is taught."""
    return {} if spec.base.job is None else {BASE_JOB: spec.base.job}


def settle(spec: FineTuneSpec) -> tuple[FineTuneSpec, tuple[Choice, ...]]:
    """Fill in what was left out and depends on other fields, with the rule for each."""
    choose = Choices()
    method = settle_method(spec.method, choose)
    training = settle_training(
        spec.training,
        choose,
        epochs=(3.0, "supervised fine-tuning makes 2 to 5 passes"),
        learning_rate=_learning_rate(method.type),
        zero_stage=fitting_zero_stage(method.type, spec.workers.world_size),
    )
    return spec.model_copy(update={"method": method, "training": training}), choose.made


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
        precision=spec.training.precision,
        quantised=spec.method.type == "qlora",
        device_memory_bytes=placement(spec)["device_memory_bytes"],
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
        *TUNING_RULES,
        source_rule("base"),
        SpecRule(
            "",
            "!has(self.data.chatTemplate) || self.task == 'chat'",
            "data.chatTemplate may be set for task chat only",
        ),
        SpecRule(
            "",
            "!has(self.training) || !has(self.training.earlyStopping) || has(self.data.validation)",
            "training.earlyStopping needs data.validation",
        ),
        SpecRule(
            "",
            "!has(self.data.labels) || size(self.data.labels) == 0 || self.task == 'classification'",
            "data.labels may be set for task classification only",
        ),
        SpecRule(
            "",
            "!has(self.data.packing) || !self.data.packing || self.task != 'classification'",
            "data.packing: of task classification each row is one text",
        ),
    ),
    make_plan=make_plan,
    model_name=lambda spec: str(spec.base),
    references=references,
    settle=settle,
)
