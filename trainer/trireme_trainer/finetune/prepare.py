"""What slot 0 does before any rank of a fine-tuning job starts: python -m trireme_trainer.finetune.prepare."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from trireme.protocol import DatasetRef, JobConfig, ModelSizes, Target
from trireme_trainer.agent.preparation import PreparationResult
from trireme_trainer.data.classes import Classes, ClassFormatter
from trireme_trainer.data.dataset import DatasetIndex
from trireme_trainer.data.example_files import ExamplePreparation
from trireme_trainer.data.examples import Formatter
from trireme_trainer.finetune.config import FineTuneConfig
from trireme_trainer.hf.memory import check_context, require_room
from trireme_trainer.hf.models import MethodUnusable, check_packing, peft_config, sizes
from trireme_trainer.hf.prepare import HFInputs
from trireme_trainer.preparation import entry


class Inputs(HFInputs):
    """Prepares one attempt."""

    config: FineTuneConfig

    def check(self, models: dict[str, Path]) -> ModelSizes:
        """Whether base and method fit the task, each other and the devices. Raises DataError."""
        config, base = self.config, models[self.config.base_name]
        if config.spec.method.type == "qlora" and find_spec("bitsandbytes") is None:
            raise MethodUnusable("spec.method.type qlora: the trainer image has no bitsandbytes to quantise with")
        counted = super().check(models)
        adapter = peft_config(config.spec.method, config.head)
        virtual = adapter.num_virtual_tokens or 0 if adapter is not None and adapter.is_prompt_learning else 0
        check_context(base, config.sequence_length, virtual)
        if config.spec.data.packing:
            check_packing(base, adapter)
        self.memory = require_room(config, base, counted)
        return counted

    def parameters(self, models: dict[str, Path], counted: ModelSizes, dataset: DatasetRef) -> ModelSizes:
        """Of a classifier whose classes the data have told, counted again. Raises DataError, StoreError."""
        config = self.config
        if config.spec.task != "classification" or config.classes:
            return counted
        index = self.dataset_index(dataset)
        config, base = replace(config, classes=tuple(index.classes or ())), models[config.base_name]
        counted = sizes(base, config.spec.method, config.head)
        self.memory = require_room(config, base, counted)
        return counted

    def prepare_data(self, tokenizer: PreTrainedTokenizerBase, directory: Path) -> DatasetIndex:
        """Examples of the job's task. Raises DataError, StoreError."""
        config, data = self.config, self.config.spec.data
        if config.spec.task == "classification":
            return self._prepare_texts(tokenizer, directory)
        formatter = Formatter(config.spec.task, tokenizer, data.chat_template)
        if data.chat_template is not None:
            tokenizer.chat_template = data.chat_template
        files = self.save_tokenizer(tokenizer)
        preparation = ExamplePreparation(config.examples, formatter, files, config.job.store, directory)
        return preparation.run(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)

    def _prepare_texts(self, tokenizer: PreTrainedTokenizerBase, directory: Path) -> DatasetIndex:
        config, classes = self.config, Classes(self.config.spec.data.labels)
        if tokenizer.pad_token is None:  # the model finds a text's last token by it, when trained and when served
            tokenizer.pad_token = tokenizer.eos_token
        formatter, files = ClassFormatter(tokenizer, classes), self.save_tokenizer(tokenizer)
        preparation = ExamplePreparation(config.examples, formatter, files, config.job.store, directory)
        return preparation.run(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, classes=classes)


def prepare(job: JobConfig, target: Target, scratch: Path) -> PreparationResult:
    """The proposal, or why there is none."""
    config = FineTuneConfig.parse(job)
    return entry.answer(lambda: Inputs(config, target, scratch).propose())


if __name__ == "__main__":
    entry.main(prepare)
