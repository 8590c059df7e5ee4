"""What slot 0 does before any rank of a fine-tuning job starts: python -m trireme_trainer.finetune.prepare."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from trireme.protocol import JobConfig, Target
from trireme_trainer.agent.preparation import PreparationResult
from trireme_trainer.data.dataset import DatasetIndex
from trireme_trainer.data.example_files import ExamplePreparation
from trireme_trainer.data.examples import Formatter
from trireme_trainer.finetune.config import FineTuneConfig
from trireme_trainer.hf.prepare import HFInputs
from trireme_trainer.preparation import entry


class Inputs(HFInputs):
    """Prepares one attempt."""

    config: FineTuneConfig

    def prepare_data(self, tokenizer: PreTrainedTokenizerBase, directory: Path) -> DatasetIndex:
        """Examples of the job's task. Raises DataError, StoreError."""
        config, data = self.config, self.config.spec.data
        formatter = Formatter(config.spec.task, tokenizer, data.chat_template)
        if data.chat_template is not None:
            tokenizer.chat_template = data.chat_template
        files = self.save_tokenizer(tokenizer)
        preparation = ExamplePreparation(config.examples, formatter, files, config.job.store, directory)
        return preparation.run(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)


def prepare(job: JobConfig, target: Target, scratch: Path) -> PreparationResult:
    """The proposal, or why there is none."""
    config = FineTuneConfig.parse(job)
    return entry.answer(lambda: Inputs(config, target, scratch).propose())


if __name__ == "__main__":
    entry.main(prepare)
