"""Group relative policy optimization (Shao et al. 2024): trl's trainer makes the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer
from trl.models import prepare_deepspeed
from trl.trainer.utils import add_fused_lm_head

from trireme_trainer.hf.counters import Evaluation
from trireme_trainer.hf.data import StepSampler
from trireme_trainer.hf.models import load_model
from trireme_trainer.hf.run import HFRun
from trireme_trainer.hf.steering import StepTrainer, steered
from trireme_trainer.metrics.parts import GENERATION, REWARD
from trireme_trainer.rank.run import Wish
from trireme_trainer.rlhf.config import RLHFConfig
from trireme_trainer.rlhf.data import PromptDataset, PromptRows
from trireme_trainer.rlhf.rewards.batch import Completions, RewardSum, Scores
from trireme_trainer.rlhf.scoring import completions_of, generation_config, make_rewards, mean_rewards
from trireme_trainer.rlhf.transcripts import Transcripts

SHOWN = {
    "reward": "reward",
    "reward_std": "rewardDeviation",
    "kl": "kl",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clipFraction",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "cutFraction",
    "frac_reward_zero_std": "equalGroups",
}
"""Names in trl's log, and in the job's status."""


class GroupSampler(Sampler[int]):
    """The rows of all steps, a prompt as often as it is answered, and a step's as often as its trainer asks for them:
    once for each backward pass, though it draws completions at the first only.
    """

    def __init__(self, steps: StepSampler, rows_per_step: int, samples_per_prompt: int, passes: int) -> None:
        self._steps, self._rows, self._samples, self._passes = steps, rows_per_step, samples_per_prompt, passes

    def __len__(self) -> int:
        return len(self._steps) * self._samples * self._passes

    def __iter__(self) -> Iterator[int]:
        step: list[int] = []
        for row in self._steps:
            step.append(row)
            if len(step) == self._rows:
                for _ in range(self._passes):
                    yield from (row for row in step for _ in range(self._samples))
                step = []


class _Trainer(GRPOTrainer):  # type: ignore[misc] # the library has no types
    """trl's trainer on prompts that are tokenised already."""

    rows: PromptRows

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Any:
        self._numbers = [example["row"] for example in inputs]
        run: HFRun = self._run  # that steers it
        with run.parts.part(GENERATION):
            return super()._generate_and_score_completions(inputs)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.rows.prompt(number).tokens for number in self._numbers], None, {}

    def hold_at(self, reference: PreTrainedModel) -> None:
        """Take a reference of another origin than the policy's, and prepare it as the library does its own."""
        add_fused_lm_head(reference, temperature=self.temperature)
        if self.is_deepspeed_enabled:
            self.ref_model = prepare_deepspeed(reference, self.accelerator)
        else:
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)


class AlgorithmRun(HFRun):
    """One rank's run."""

    config: RLHFConfig
    data: PromptDataset
    evaluates_at_start = True
    shown = SHOWN
    _drawn: tuple[Completions, Scores]
    """What the last step learned from."""

    def make_dataset(self, directory: Path) -> PromptDataset:
        """Prompts."""
        self._dataset = directory
        return PromptDataset(directory, self.config.spec.training.seed, self.config.examples_per_step)

    @property
    def updates_per_step(self) -> int:
        """Updates with each batch of completions."""
        return self.config.spec.grpo.iterations if self.config.spec.grpo else 1

    def make_trainer(
        self,
        model: PreTrainedModel,
        adapter: peft.PeftConfig | None,
        tokenizer: PreTrainedTokenizerBase,
        arguments: dict[str, Any],
    ) -> StepTrainer:
        """With the rewards of the spec, and the reference that is named; else the policy as it starts."""
        spec = self.config.spec
        assert spec.grpo is not None, "settled at admission"
        drawing, named = spec.generation, self.config.reference_name
        self._tokenizer = tokenizer
        self._rewards = make_rewards(self.config, self.folders, self._dataset, self.ranks.device, self.channel.alive)
        self._transcripts = Transcripts(self.channel, wanted=self.place.rank == 0)
        self._step_tokens = 0
        # What a call leaves out is taken from the model's own settings, penalties too, which learning knows nothing of.
        model.generation_config = generation_config(self.config, tokenizer)
        trainer: Any = steered(_Trainer)(
            self,
            model=model,
            peft_config=adapter,
            reward_funcs=_reward_functions(self._rewards, self._score),
            args=GRPOConfig(
                **arguments,
                beta=spec.grpo.beta,
                epsilon=spec.grpo.epsilon,
                num_iterations=spec.grpo.iterations,
                num_generations=drawing.samples_per_prompt,
                max_completion_length=drawing.max_new_tokens,
                temperature=drawing.temperature,
                top_p=drawing.top_p,
                top_k=drawing.top_k,
                reward_weights=[part.weight for part in self._rewards.parts],
                loss_type="grpo",
                shuffle_dataset=False,
            ),
            train_dataset=self.data.train.dataset,
            processing_class=tokenizer,
        )
        trainer.rows = self.data.train
        if named in self.folders and spec.grpo.beta:
            trainer.hold_at(load_model(self.folders[named], self.weights_dtype))
        made: StepTrainer = trainer
        return made

    def _score(self, numbers: Sequence[int], drawn: Sequence[Sequence[int]]) -> Scores:
        batch = completions_of(self.data.train, numbers, drawn, self._tokenizer)
        self._step_tokens = sum(map(len, drawn)) + sum(len(self.data.train.prompt(n).tokens) for n in numbers)
        with self.parts.part(REWARD):
            scores = self._rewards.score(batch, self.channel.alive)
        self._drawn = (batch, scores)
        return scores

    def end_step(self, step: int) -> Wish:
        """Also: show some of what was learned from."""
        self._transcripts.add(step, *self._drawn)
        return super().end_step(step)

    def sampler(self) -> Sampler[int]:
        """The rows that are left, in trl's order of groups."""
        spec, plan = self.config.spec, self.config.plan
        samples = spec.generation.samples_per_prompt or 1
        steps = StepSampler(self.data, self._first, self._total)
        passes = plan.accumulation_steps * self.updates_per_step
        return GroupSampler(steps, self.config.examples_per_step, samples, passes)

    def step_tokens(self, step: int) -> int:
        """Tokens of the prompts and of what was drawn for them in the step that was made last, on all ranks."""
        return int(self.ranks.total(float(self._step_tokens))[0])

    def step_metrics(self, logs: Mapping[str, float]) -> dict[str, float]:
        """Rewards, lengths, and how far the policy moved."""
        shown = super().step_metrics(logs)
        for part in self._rewards.parts:
            if (mean := logs.get(f"rewards/{part.name}/mean")) is not None:
                shown[f"rewards/{part.name}"] = float(mean)
        return shown

    def evaluate(self) -> Evaluation:
        """Mean rewards of completions of the held-out prompts."""
        return mean_rewards(
            self.trainer,
            self.data.validation,
            self._rewards,
            self.config,
            self._tokenizer,
            self.ranks,
            self.place,
            self.channel.alive,
        )


def _reward_functions(
    rewards: RewardSum, score: Callable[[Sequence[int], Sequence[Sequence[int]]], Scores]
) -> list[Callable[..., list[float]]]:
    """A function for each reward, as trl calls them, one after another for each batch; the first call scores all."""
    scores: dict[str, list[float]] = {}

    def make(name: str, first: bool) -> Callable[..., list[float]]:
        def function(row: Sequence[int], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
            if first:
                scores.update(score(row, completion_ids).by_name)
            return scores[name]

        function.__name__ = name
        return function

    return [make(part.name, number == 0) for number, part in enumerate(rewards.parts)]
