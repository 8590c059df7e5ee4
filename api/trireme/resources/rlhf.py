"""RLHFJob: align a trained model with preferences: reward model, DPO, GRPO or PPO."""

from typing import Any, Literal

from pydantic import Field, model_validator

from trireme.planning import PlanError
from trireme.planning.data_parallel import DataParallelPlan, plan_data_parallel
from trireme.resources.algorithms import Dpo, Generation, Grpo, Ppo
from trireme.resources.base import Strict
from trireme.resources.common import TrainingJobSpec
from trireme.resources.kinds import Choice, ConfigMapFile, JobKind, SpecRule
from trireme.resources.references import JobReference, References
from trireme.resources.rewards import REWARD_RULES, Rewards
from trireme.resources.rules import JOB_COLUMNS, JOB_MUTABLE, JOB_RULES
from trireme.resources.status import JobStatus
from trireme.resources.tuning import (
    PROMPT_METHODS,
    TUNING_RULES,
    Choices,
    ExampleSource,
    ExampleValidation,
    Method,
    ModelSource,
    Output,
    TuningTraining,
    fitting_zero_stage,
    settle_method,
    settle_training,
    source_rule,
)

Algorithm = Literal["reward", "dpo", "grpo", "ppo"]
ONLINE = ("grpo", "ppo")
"""Algorithms that learn from completions which the policy itself draws."""
POLICY_JOB, REFERENCE_JOB = "policy.job", "reference.job"
MOST_NEW_TOKENS = 256
LEARNING_RATES: dict[str, tuple[float, str]] = {
    "reward": (1e-5, "Ouyang et al. 2022: 9e-6 for one pass over the comparisons"),
    "dpo": (1e-6, "Rafailov et al. 2023: 1e-6"),
    "grpo": (1e-6, "Shao et al. 2024: 1e-6"),
    "ppo": (3e-6, "within 1e-6 to 1e-5; trl's PPO had 3e-6"),
}
ADAPTER_FACTOR = 10


class PreferenceData(Strict):
    """What the model learns from: comparisons, or prompts."""

    sources: list[ExampleSource] = Field(
        min_length=1,
        max_length=64,
        description="Where lines come from. reward and dpo: prompt, chosen, rejected. grpo and ppo: prompt; other "
        "fields go to reward functions. Each is a text, or a list of messages in the model's chat template.",
    )
    sequence_length: int = Field(
        default=2048, ge=8, le=16_777_216, description="Most tokens of a prompt with its completion."
    )
    prompt_length: int | None = Field(
        default=None,
        ge=1,
        le=16_777_216,
        description="Of grpo and ppo: most tokens of a prompt; what generation.maxNewTokens leaves when left out.",
    )
    overlong: Literal["refuse", "truncate", "drop"] = Field(
        default="refuse",
        description="What happens to a line with more tokens. refuse: the job does not start, and names the first. "
        "truncate: completions lose their ends, prompts of grpo and ppo their beginnings.",
    )
    validation: ExampleValidation | None = Field(
        default=None, description="Lines kept out of training; no validation when left out."
    )
    chat_template: str | None = Field(
        default=None,
        min_length=1,
        max_length=16384,
        description="Jinja template of messages; the policy's own when left out.",
    )


class RLHFSpec(TrainingJobSpec):
    """The spec of an RLHFJob."""

    algorithm: Algorithm = Field(
        description="reward: a reward model from comparisons. dpo: the policy from comparisons. grpo, ppo: the policy "
        "from rewards of what it says itself."
    )
    policy: ModelSource = Field(
        description="The model to align; of algorithm reward the model that the scorer grows from."
    )
    reference: ModelSource | None = Field(
        default=None,
        description="Of dpo, grpo and ppo: the model that the policy is held at; the policy as it was at the start "
        "when left out.",
    )
    method: Method = Field(default_factory=Method, description="What is trained.")
    data: PreferenceData = Field(description="What the model learns from.")
    rewards: Rewards | None = Field(
        default=None, description="Of grpo and ppo: what a completion is worth, as the weighted sum of these."
    )
    generation: Generation = Field(
        default_factory=Generation, description="Of grpo and ppo: how completions are drawn."
    )
    dpo: Dpo | None = Field(default=None, description="Of algorithm dpo.")
    grpo: Grpo | None = Field(default=None, description="Of algorithm grpo.")
    ppo: Ppo | None = Field(default=None, description="Of algorithm ppo.")
    training: TuningTraining = Field(
        default_factory=TuningTraining,
        description="How the model is taught. A step is one batch of comparisons; of grpo and ppo one of prompts, with "
        "all updates from their completions.",
    )
    output: Output = Field(default_factory=Output, description="What is exported.")

    @model_validator(mode="after")
    def _fits_algorithm(self) -> "RLHFSpec":
        algorithm, online = self.algorithm, self.algorithm in ONLINE
        for name in ("dpo", "grpo", "ppo"):
            if getattr(self, name) is not None and name != algorithm:
                raise ValueError(f"{name} may be set for algorithm {name} only")
        if (self.rewards is not None) != online:
            raise ValueError("rewards must be set for grpo and ppo, and for no other algorithm")
        if self.reference is not None and algorithm == "reward":
            raise ValueError("reference: a reward model has none")
        if self.data.prompt_length is not None and not online:
            raise ValueError("data.promptLength may be set for grpo and ppo only")
        names = [reward.name for reward in self.rewards or ()]
        if len(set(names)) < len(names):
            raise ValueError("rewards: names must differ")
        if self.method.type == "qlora":
            raise ValueError("method.type qlora: a FineTuneJob teaches on a base in 4 bits; use lora here")
        if self.output.merge and self.method.type in PROMPT_METHODS:
            raise ValueError(f"output.merge: {self.method.type} trains virtual tokens, which are part of no weight")
        return self

    @model_validator(mode="after")
    def _fits_ppo(self) -> "RLHFSpec":
        if self.algorithm != "ppo":
            return self
        if self.method.type in PROMPT_METHODS:
            raise ValueError(f"method.type: ppo does not train virtual tokens ({self.method.type})")
        if self.generation.top_p < 1 or self.generation.top_k:
            raise ValueError(
                "generation: topP and topK draw from other probabilities than those that ppo learns from; "
                "leave them out"
            )
        return self


def references(spec: RLHFSpec) -> References:
    """The jobs whose models are aligned, held at, and asked for rewards."""
    found: dict[str, JobReference] = {}
    sources = {POLICY_JOB: spec.policy, REFERENCE_JOB: spec.reference}
    sources |= {reward_job(i): reward.model for i, reward in enumerate(spec.rewards or ())}
    for field, source in sources.items():
        if source is not None and source.job is not None:
            found[field] = source.job
    return found


def reward_job(index: int) -> str:
    """The field that names the job of a reward model."""
    return f"rewards[{index}].model.job"


def config_map_files(spec: RLHFSpec) -> tuple[ConfigMapFile, ...]:
    """Sources of the reward functions, each as <name of the reward>.py."""
    return tuple(
        ConfigMapFile(f"{r.name}.py", r.function.config_map.name, r.function.config_map.key)
        for r in spec.rewards or ()
        if r.function is not None
    )


def settle(spec: RLHFSpec) -> tuple[RLHFSpec, tuple[Choice, ...]]:
    """Fill in what was left out and depends on other fields, with the rule for each."""
    choose = Choices()
    method = settle_method(spec.method, choose)
    rate, rule = LEARNING_RATES[spec.algorithm]
    if method.type != "full":
        rate, rule = rate * ADAPTER_FACTOR, f"{rule} for all weights; adapters bear ten times as much"
    training = settle_training(
        spec.training,
        choose,
        epochs=(1.0, "more passes over the same comparisons or prompts overfit them"),
        learning_rate=(rate, rule),
        zero_stage=fitting_zero_stage(method.type, spec.workers.world_size),
    )
    update: dict[str, Any] = {"method": method, "training": training}
    parameters: dict[str, type[Strict]] = {"dpo": Dpo, "grpo": Grpo, "ppo": Ppo}
    if spec.algorithm in parameters and getattr(spec, spec.algorithm) is None:
        update[spec.algorithm] = parameters[spec.algorithm]()
    if spec.algorithm in ONLINE:
        update |= _settle_drawing(spec, choose)
    return spec.model_copy(update=update), choose.made


def _settle_drawing(spec: RLHFSpec, choose: Choices) -> dict[str, Any]:
    """Lengths and number of completions."""
    generation, data = spec.generation, spec.data
    if generation.max_new_tokens is None:
        tokens = min(MOST_NEW_TOKENS, data.sequence_length // 2)
        rule = f"the smaller of {MOST_NEW_TOKENS} and half of data.sequenceLength"
        generation = generation.model_copy(update={"max_new_tokens": choose("generation.maxNewTokens", tokens, rule)})
    if generation.samples_per_prompt is None:
        samples = (
            (8, "Shao et al. 2024 compare 64, trl 8") if spec.algorithm == "grpo" else (1, "ppo compares with values")
        )
        generation = generation.model_copy(
            update={"samples_per_prompt": choose("generation.samplesPerPrompt", *samples)}
        )
    assert generation.max_new_tokens is not None
    left = data.sequence_length - generation.max_new_tokens
    if data.prompt_length is None and left >= 1:  # what does not fit is refused with the plan
        rule = "data.sequenceLength less generation.maxNewTokens"
        data = data.model_copy(update={"prompt_length": choose("data.promptLength", left, rule)})
    return {"generation": generation, "data": data}


def make_plan(spec: RLHFSpec) -> DataParallelPlan:
    """The plan of a settled spec. Raises PlanError.

    What is cut into micro-batches: comparisons; of grpo completions; of ppo the completions of one update.
    """
    assert spec.training.zero_stage is not None
    size, ranks = spec.training.global_batch_size, spec.workers.world_size
    if spec.algorithm in ONLINE:
        size = _completions_per_update(spec)
    return plan_data_parallel(
        world_size=ranks,
        global_batch_size=size,
        micro_batch_size=spec.training.micro_batch_size,
        zero_stage=spec.training.zero_stage,
        accelerator=spec.workers.accelerator.kind,
    )


def _completions_per_update(spec: RLHFSpec) -> int:
    generation, data, prompts = spec.generation, spec.data, spec.training.global_batch_size
    new, samples, ranks = generation.max_new_tokens, generation.samples_per_prompt, spec.workers.world_size
    assert new is not None
    assert samples is not None
    if (data.prompt_length or 1) + new > data.sequence_length:
        raise PlanError(
            "LengthsDoNotFit",
            "data.sequenceLength",
            f"promptLength {data.prompt_length or 1} and maxNewTokens {new} exceed {data.sequence_length} tokens",
        )
    if spec.algorithm == "grpo" and samples < 2:
        raise PlanError(
            "GroupTooSmall", "generation.samplesPerPrompt", "grpo compares completions of a prompt: at least 2"
        )
    if prompts % ranks:
        raise PlanError(
            "BatchNotDivisible",
            "training.globalBatchSize",
            f"{prompts} prompts cannot be shared out evenly over {ranks} ranks",
        )
    if spec.algorithm == "ppo" and spec.training.zero_stage == 3:
        raise PlanError(
            "ZeroStageNotSupported", "training.zeroStage", "ppo draws with whole weights on every rank: at most stage 2"
        )
    parts = spec.ppo.mini_batches if spec.ppo is not None else 1
    if (prompts * samples // ranks) % parts:
        raise PlanError(
            "BatchNotDivisible",
            "ppo.miniBatches",
            f"a rank's {prompts * samples // ranks} completions cannot be cut into {parts} mini-batches",
        )
    return prompts * samples // parts


class RLHFJob(Strict):
    """An RLHFJob as it stands in a manifest; metadata is Kubernetes' own."""

    api_version: Literal["trireme.dev/v1alpha1"]
    kind: Literal["RLHFJob"]
    metadata: dict[str, Any]
    spec: RLHFSpec
    status: JobStatus | None = None


RLHF_JOB = JobKind(
    kind="RLHFJob",
    plural="rlhfjobs",
    singular="rlhfjob",
    short_names=("rlj",),
    description="A trained model aligned with preferences: a reward model, or a policy by DPO, GRPO or PPO.",
    spec_model=RLHFSpec,
    status_model=JobStatus,
    program="rlhf",
    print_columns=JOB_COLUMNS,
    mutable_paths=JOB_MUTABLE,
    rules=(
        *JOB_RULES,
        *TUNING_RULES,
        *REWARD_RULES,
        source_rule("policy"),
        source_rule("reference"),
        *(
            SpecRule("", f"!has(self.{a}) || self.algorithm == '{a}'", f"{a} may be set for algorithm {a} only")
            for a in ("dpo", "grpo", "ppo")
        ),
        SpecRule(
            "",
            "has(self.rewards) == (self.algorithm in ['grpo', 'ppo'])",
            "rewards must be set for grpo and ppo, and for no other algorithm",
        ),
        SpecRule("", "!has(self.reference) || self.algorithm != 'reward'", "reference: a reward model has none"),
        SpecRule(
            "",
            "!has(self.data.promptLength) || self.algorithm in ['grpo', 'ppo']",
            "data.promptLength may be set for grpo and ppo only",
        ),
        SpecRule(
            "",
            "self.algorithm != 'ppo' || !has(self.generation) || ((!has(self.generation.topP) || "
            "self.generation.topP == 1.0) && (!has(self.generation.topK) || self.generation.topK == 0))",
            "topP and topK draw from other probabilities than those that ppo learns from; leave them out",
        ),
        SpecRule(
            "",
            "self.algorithm != 'ppo' || !has(self.method) || !has(self.method.type) || "
            "!(self.method.type in ['prefix', 'promptTuning', 'pTuning'])",
            "ppo does not train virtual tokens",
        ),
    ),
    make_plan=make_plan,
    model_name=lambda spec: str(spec.policy),
    references=references,
    config_map_files=config_map_files,
    settle=settle,
)
