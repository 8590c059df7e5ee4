"""One rank's run of a fine-tuning job: trl's supervised trainer makes the steps."""

from __future__ import annotations

from typing import Any

import peft
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from trireme_trainer.finetune.config import FineTuneConfig
from trireme_trainer.finetune.evaluation import mean_loss
from trireme_trainer.hf.models import with_adapter
from trireme_trainer.hf.run import Evaluation, HFRun
from trireme_trainer.hf.steering import StepTrainer, steered


class Teaching(HFRun):
    """One rank's run."""

    config: FineTuneConfig

    def make_trainer(
        self,
        model: PreTrainedModel,
        adapter: peft.PeftConfig | None,
        tokenizer: PreTrainedTokenizerBase,
        arguments: dict[str, Any],
    ) -> StepTrainer:
        """trl's trainer on examples that are tokenised already."""
        taught = with_adapter(model, adapter)
        if adapter is not None and self.config.spec.training.recompute:
            taught.enable_input_require_grads()
        trainer: StepTrainer = steered(SFTTrainer)(
            self,
            model=taught,
            args=SFTConfig(**arguments, dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=self.data.train.dataset,
            processing_class=tokenizer,
        )
        return trainer

    def evaluate(self) -> Evaluation:
        """Mean loss per token that counts."""
        micro = self.config.plan.micro_batch_size
        loss = mean_loss(self.trainer, self.data.validation, micro, self.ranks, self.place, self.channel.alive)
        return Evaluation(loss)
