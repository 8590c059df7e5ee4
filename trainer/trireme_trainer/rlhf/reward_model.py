"""Reward models (Ouyang et al. 2022, equation 1): trl's trainer makes the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import peft
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from trireme_trainer.hf.steering import StepTrainer, steered
from trireme_trainer.rlhf.comparing import ComparingRun

SHOWN = {
    "accuracy": "accuracy",
    "margin": "margin",
    "mean_reward": "meanReward",
    "min_reward": "minReward",
    "max_reward": "maxReward",
}
"""Names in trl's log, and in the job's status."""


@dataclass
class WholeAnswers(DataCollatorForPreference):  # type: ignore[misc] # the library has no types
    """The prompt stands before each answer."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """input_ids and attention_mask [2 * pairs, seq], the chosen before the rejected."""
        whole = [
            {name: [*example["prompt_ids"], *example[name]] for name in ("chosen_ids", "rejected_ids")}
            for example in examples
        ]
        batch: dict[str, Any] = super().torch_call(whole)
        return batch


class AlgorithmRun(ComparingRun):
    """One rank's run."""

    shown = SHOWN

    def make_trainer(
        self,
        model: PreTrainedModel,
        adapter: peft.PeftConfig | None,
        tokenizer: PreTrainedTokenizerBase,
        arguments: dict[str, Any],
    ) -> StepTrainer:
        """A scorer that grows from the policy's body."""
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        trainer: StepTrainer = steered(RewardTrainer)(
            self,
            model=model,
            peft_config=adapter,
            args=RewardConfig(**arguments, max_length=None, remove_unused_columns=False),
            data_collator=WholeAnswers(pad_token_id=padding),
            train_dataset=self.data.train.dataset,
            processing_class=tokenizer,
        )
        return trainer

    def scores(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """By how much the chosen answer's score is above the other's."""
        trainer: Any = self.trainer
        chosen, rejected = trainer.model_wrapped(**batch, use_cache=False).logits[:, 0].float().chunk(2)
        return {"margin": chosen - rejected}
