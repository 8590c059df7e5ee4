"""One rank's run of a fine-tuning job: trl's supervised trainer makes the steps, of a classifier transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from trireme_trainer.agent.messages import Inputs
from trireme_trainer.finetune.batches import PackedRows
from trireme_trainer.finetune.config import FineTuneConfig
from trireme_trainer.finetune.evaluation import HeldOut
from trireme_trainer.hf.counters import Evaluation
from trireme_trainer.hf.models import with_adapter
from trireme_trainer.hf.patience import Patience
from trireme_trainer.hf.ranks import GroupRanks
from trireme_trainer.hf.run import HFRun
from trireme_trainer.hf.steering import StepTrainer, steered
from trireme_trainer.rank.run import Channel, Place


class Teaching(HFRun):
    """One rank's run."""

    config: FineTuneConfig
    evaluates_at_start = True

    def __init__(
        self, config: FineTuneConfig, ranks: GroupRanks, channel: Channel, place: Place, inputs: Inputs, *rest: Any
    ) -> None:
        config = config.with_data(Path(inputs.dataset_directory))
        super().__init__(config, ranks, channel, place, inputs, *rest)

    def make_patience(self) -> Patience | None:
        """As the manifest says."""
        stopping = self.config.spec.training.early_stopping
        return None if stopping is None else Patience(stopping.patience, stopping.least_improvement)

    def make_trainer(
        self,
        model: PreTrainedModel,
        adapter: peft.PeftConfig | None,
        tokenizer: PreTrainedTokenizerBase,
        arguments: dict[str, Any],
    ) -> StepTrainer:
        """The trainer of the job's task, on examples that are tokenised already."""
        spec = self.config.spec
        if spec.method.type == "qlora":
            model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=spec.training.recompute)
        taught = with_adapter(model, adapter)
        if adapter is not None and spec.training.recompute:
            taught.enable_input_require_grads()
        make = self._make_classifier if spec.task == "classification" else self._make_supervised
        trainer = make(taught, tokenizer, arguments)
        if spec.method.type == "qlora":
            _keep_in_float32(trainer.model)
        return trainer

    def _make_supervised(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, arguments: dict[str, Any]
    ) -> StepTrainer:
        collator = None
        if self.config.spec.data.packing:
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            collator = PackedRows(tokenizer.pad_token_id)
        trainer: StepTrainer = steered(SFTTrainer)(
            self,
            model=model,
            args=SFTConfig(**arguments, dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=self.data.train.dataset,
            processing_class=tokenizer,
            data_collator=collator,
        )
        return trainer

    def _make_classifier(
        self, model: Any, tokenizer: PreTrainedTokenizerBase, arguments: dict[str, Any]
    ) -> StepTrainer:
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        trainer: StepTrainer = steered(Trainer)(
            self,
            model=model,
            # The rows have nothing but what the model takes.
            args=TrainingArguments(**arguments, remove_unused_columns=False),
            train_dataset=self.data.train.dataset,
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_loss_func=mean_over_batch,
        )
        return trainer

    def evaluate(self) -> Evaluation:
        """Mean loss per token that counts; of a classifier per text, and its accuracy."""
        micro = self.config.plan.micro_batch_size
        rows = HeldOut(self.trainer, self.data.validation, micro, self.ranks, self.place, self.channel.alive)
        if self.config.spec.task == "classification":
            loss, accuracy = rows.classified()
            return Evaluation(loss, {"accuracy": accuracy})
        return Evaluation(rows.mean_loss())


def mean_over_batch(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross entropy of a classifier, divided by the texts of the whole step and not of the micro-batch alone."""
    loss = cross_entropy(outputs.logits.float(), labels, reduction="sum")
    return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def _keep_in_float32(model: Any) -> None:
    """What is trained: trl takes the adapter of a quantised base to bfloat16, where small updates are lost."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
