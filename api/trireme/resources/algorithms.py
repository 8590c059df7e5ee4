"""Parameters of an RLHFJob's algorithms and of how completions are drawn."""

from pydantic import Field

from trireme.resources.base import Strict
from trireme.resources.tuning import ExampleSource


class Generation(Strict):
    """How grpo and ppo draw completions."""

    max_new_tokens: int | None = Field(
        default=None,
        ge=1,
        le=1_048_576,
        description="Most tokens of a completion; the smaller of 256 and half of data.sequenceLength when left out.",
    )
    temperature: float = Field(
        default=1.0,
        gt=0,
        le=10,
        description="Divides the logits, of drawing and of the probabilities that are learned from.",
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Draw from the fewest tokens with this probability; 1 is from all."
    )
    top_k: int = Field(default=0, ge=0, le=1_048_576, description="Draw from this many likeliest tokens; 0 is all.")
    samples_per_prompt: int | None = Field(
        default=None, ge=1, le=1024, description="Completions of each prompt; 8 for grpo and 1 for ppo when left out."
    )


class Dpo(Strict):
    """Direct preference optimization (Rafailov et al. 2023)."""

    beta: float = Field(default=0.1, gt=0, le=1000, description="How strongly the policy is held at the reference.")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="Share of preferences taken to be the wrong way round."
    )


class Grpo(Strict):
    """Group relative policy optimization (Shao et al. 2024)."""

    beta: float = Field(default=0.0, ge=0, le=1000, description="Coefficient of the KL term; 0 needs no reference.")
    epsilon: float = Field(default=0.2, gt=0, lt=1, description="Clipping range of the probability ratio.")
    iterations: int = Field(default=1, ge=1, le=64, description="Updates with each batch of completions.")


class KlStop(Strict):
    """Ends the updates with a batch of completions when they have moved the policy too far."""

    threshold: float = Field(
        default=0.05, gt=0, le=1000, description="Ends when the mean of the last updates' KL per token exceeds this."
    )
    patience: int = Field(default=3, ge=1, le=1024, description="Number of last updates that the mean is taken over.")


class Ptx(Strict):
    """A language-model loss on other text beside PPO's (Ouyang et al. 2022), against forgetting."""

    coefficient: float = Field(default=0.1, gt=0, le=1000, description="Factor of this loss in the sum.")
    sources: list[ExampleSource] = Field(
        min_length=1,
        max_length=64,
        description="Lines with prompt and completion (loss on the completion), or text (loss on all of it).",
    )


class Ppo(Strict):
    """Proximal policy optimization (Schulman et al. 2017) of a language model (Ziegler et al. 2019)."""

    kl_coefficient: float = Field(
        default=0.05, ge=0, le=1000, description="Factor of the KL to the reference, per token, in the reward."
    )
    clip_range: float = Field(default=0.2, gt=0, lt=1, description="Clipping range of the probability ratio.")
    value_clip_range: float = Field(default=0.2, gt=0, le=1000, description="Clipping range of the values.")
    value_coefficient: float = Field(default=0.5, ge=0, le=1000, description="Factor of the value loss in the sum.")
    entropy_coefficient: float = Field(default=0.0, ge=0, le=10, description="Factor of the entropy in the sum.")
    gamma: float = Field(default=1.0, ge=0, le=1, description="Discount per token.")
    lambda_: float = Field(
        default=0.95,
        ge=0,
        le=1,
        alias="lambda",
        description="Of generalized advantage estimation (Schulman et al. 2016).",
    )
    epochs: int = Field(default=4, ge=1, le=64, description="Passes over each batch of completions.")
    mini_batches: int = Field(default=1, ge=1, le=1024, description="Updates in each pass.")
    whiten_advantages: bool = Field(
        default=True, description="Bring the advantages of a batch to mean 0 and standard deviation 1."
    )
    kl_stop: KlStop | None = Field(default=None, description="Early end of a batch's updates; none when left out.")
    ptx: Ptx | None = Field(default=None, description="Language-model loss beside it; none when left out.")
