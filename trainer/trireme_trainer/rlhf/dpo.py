"""Direct preference optimization (Rafailov et al. 2023, equation 7): trl's trainer makes the steps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import peft
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from trireme_trainer.hf.models import load_model
from trireme_trainer.hf.steering import StepTrainer, steered
from trireme_trainer.rlhf.comparing import ComparingRun

SHOWN = {
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "chosenReward",
    "rewards/rejected": "rejectedReward",
    "logps/chosen": "chosenLogProbability",
    "logps/rejected": "rejectedLogProbability",
    "entropy": "entropy",
}
"""Names in trl's log, and in the job's status."""


class _Trainer(DPOTrainer):  # type: ignore[misc] # the library has no types
    """trl's trainer on comparisons that are tokenised already."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


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
        """With the reference that is named; else the policy as it starts, which under an adapter is its base."""
        dpo, named = self.config.spec.dpo, self.config.reference_name
        assert dpo is not None, "settled at admission"
        reference = None
        if named in self.folders or adapter is None:
            folder = self.folders.get(named, self.folders[self.config.base_name])
            reference = load_model(folder, self.weights_dtype)
            self.channel.alive()
        trainer: StepTrainer = steered(_Trainer)(
            self,
            model=model,
            ref_model=reference,
            peft_config=adapter,
            args=DPOConfig(
                **arguments,
                beta=dpo.beta,
                # With a share of wrong preferences, the loss that is unbiased under it (Chowdhury et al. 2024).
                loss_type=["robust" if dpo.label_smoothing else "sigmoid"],
                label_smoothing=dpo.label_smoothing,
                max_length=None,
            ),
            train_dataset=self.data.train.dataset,
            processing_class=tokenizer,
        )
        return trainer

    def scores(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Margins of the implicit rewards, and whether the policy alone prefers the chosen answer."""
        dpo = self.config.spec.dpo
        assert dpo is not None
        trainer: Any = self.trainer
        policy = sequence_log_probabilities(trainer.model_wrapped, batch)
        if trainer.ref_model is not None:
            reference = sequence_log_probabilities(trainer.ref_model, batch)
        else:
            unwrapped = trainer.accelerator.unwrap_model(trainer.model_wrapped)
            with unwrapped.disable_adapter() if hasattr(unwrapped, "disable_adapter") else nullcontext():
                reference = sequence_log_probabilities(trainer.model_wrapped, batch)
        chosen, rejected = policy.chunk(2)
        margins = dpo.beta * ((chosen - rejected) - torch.sub(*reference.chunk(2)))
        return {"margin": margins, "policyAccuracy": (chosen > rejected).float()}


def sequence_log_probabilities(model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """log pi(answer | prompt) of each row [rows], from input_ids, attention_mask and completion_mask [rows, seq]."""
    tokens, counted = batch["input_ids"], batch["completion_mask"][:, 1:].bool()
    logits = model(input_ids=tokens, attention_mask=batch["attention_mask"], use_cache=False).logits
    # Virtual tokens stand before the others.
    logits = logits[:, logits.shape[1] - tokens.shape[1] : -1].float()
    log_probabilities = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    summed: torch.Tensor = log_probabilities.masked_fill(~counted, 0.0).sum(-1)
    return summed
