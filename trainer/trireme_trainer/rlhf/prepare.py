"""What slot 0 does before any rank of an RLHF job starts: python -m trireme_trainer.rlhf.prepare."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, PreTrainedTokenizerBase

from trireme.protocol import JobConfig, ModelSizes, Target
from trireme_trainer.agent.preparation import PreparationResult
from trireme_trainer.data.dataset import DatasetIndex
from trireme_trainer.data.errors import TokenizerUnusable
from trireme_trainer.data.example_files import ExamplePreparation
from trireme_trainer.data.preferences import ComparisonFormatter, PromptFormatter, Prompts
from trireme_trainer.hf.base import load_tokenizer
from trireme_trainer.hf.models import BaseUnusable
from trireme_trainer.hf.prepare import HFInputs
from trireme_trainer.preparation import entry
from trireme_trainer.rlhf.config import RLHFConfig


class Inputs(HFInputs):
    """Prepares one attempt."""

    config: RLHFConfig

    def check(self, models: dict[str, Path]) -> ModelSizes:
        """Also: the reference speaks the policy's tokens, and a reward model gives one number. Raises DataError."""
        counted = super().check(models)
        reference = models.get(self.config.reference_name)
        if reference is not None:
            policy = models[self.config.base_name]
            if load_tokenizer(reference).get_vocab() != load_tokenizer(policy).get_vocab():
                raise TokenizerUnusable(
                    f"reference {self.config.weights[self.config.reference_name].uri} has another vocabulary than the "
                    f"policy {self.config.base.uri}: its probabilities are of other tokens"
                )
        for name, folder in models.items():
            if name.startswith("rewards"):
                labels = AutoConfig.from_pretrained(folder, trust_remote_code=False).num_labels
                if labels != 1:
                    raise BaseUnusable(f"spec.{name}: a reward model gives one number, this one {labels}")
                load_tokenizer(folder)
        return counted

    def prepare_data(self, tokenizer: PreTrainedTokenizerBase, directory: Path) -> DatasetIndex:
        """Comparisons or prompts. Raises DataError, StoreError."""
        config, template = self.config, self.config.spec.data.chat_template
        prompts = Prompts(tokenizer, template)
        formatter = PromptFormatter(prompts) if config.online else ComparisonFormatter(prompts)
        if template is not None:
            tokenizer.chat_template = template
        files = self.save_tokenizer(tokenizer)
        preparation = ExamplePreparation(config.examples, formatter, files, config.job.store, directory)
        return preparation.run(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)


def prepare(job: JobConfig, target: Target, scratch: Path) -> PreparationResult:
    """The proposal, or why there is none."""
    config = RLHFConfig.parse(job)
    return entry.answer(lambda: Inputs(config, target, scratch).propose())


if __name__ == "__main__":
    entry.main(prepare)
