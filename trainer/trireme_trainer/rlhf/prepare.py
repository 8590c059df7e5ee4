"""What slot 0 does before any rank of an RLHF job starts: python -m trireme_trainer.rlhf.prepare."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig, PreTrainedTokenizerBase

from trireme.checkpoints import ShardFile
from trireme.protocol import JobConfig, ModelSizes, Target
from trireme.resources.common import FILES_PATH
from trireme_storage.store import hash_file
from trireme_trainer.agent.preparation import PreparationResult
from trireme_trainer.data.dataset import INDEX_NAME, TOKENIZER_DIRECTORY, DatasetIndex
from trireme_trainer.data.errors import DataError, TokenizerUnusable
from trireme_trainer.data.example_files import ExamplePreparation
from trireme_trainer.data.examples import Formatter
from trireme_trainer.data.preferences import ComparisonFormatter, PromptFormatter, Prompts
from trireme_trainer.hf.base import load_tokenizer
from trireme_trainer.hf.models import BaseUnusable
from trireme_trainer.hf.prepare import HFInputs
from trireme_trainer.preparation import entry
from trireme_trainer.rlhf.config import PTX_DIRECTORY, REWARDS_DIRECTORY, RLHFConfig
from trireme_trainer.rlhf.rewards.batch import Scorer
from trireme_trainer.rlhf.rewards.build import build_rewards, read_sources, try_rewards
from trireme_trainer.rlhf.rewards.errors import RewardUnusable

FILES_ENV = "TRIREME_FILES_DIR"


class RewardRefused(DataError):
    """A reward does not load; the message has its name."""

    reason = "RewardUnusable"
    retryable = False


class Inputs(HFInputs):
    """Prepares one attempt."""

    config: RLHFConfig

    def check(self, models: dict[str, Path]) -> ModelSizes:
        """Also: rewards load, the reference speaks the policy's tokens, and a reward model gives one number.

        Raises DataError.
        """
        counted = super().check(models)
        self._try_rewards()
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
        index = preparation.run(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
        added = [*self._write_sources(directory), *self._write_ptx(tokenizer, files, directory)]
        return _with_files(index, added, directory) if added else index

    def _write_sources(self, directory: Path) -> list[Path]:
        """The sources of reward functions, which the ConfigMaps may have otherwise tomorrow. Raises RewardRefused."""
        place, written = directory / REWARDS_DIRECTORY, []
        for name, source in self._sources().items():
            place.mkdir(exist_ok=True)
            written.append(place / f"{name}.py")
            written[-1].write_text(source, encoding="utf-8")
        return written

    def _sources(self) -> dict[str, str]:
        try:
            return read_sources(Path(os.environ.get(FILES_ENV, FILES_PATH)), self.config.spec.rewards or [])
        except RewardUnusable as error:
            raise RewardRefused(str(error)) from error

    def _try_rewards(self) -> None:
        """Load what runs in processes of its own. Raises RewardRefused."""
        rules = [reward for reward in self.config.spec.rewards or [] if reward.model is None]
        try:
            made = build_rewards(rules, self._sources(), _no_model)
            try:
                try_rewards(made)
            finally:
                made.close()
        except RewardUnusable as error:
            raise RewardRefused(str(error)) from error

    def _write_ptx(self, tokenizer: PreTrainedTokenizerBase, files: Path, directory: Path) -> list[Path]:
        """A data set within the data set, where the algorithm learns from text too. Raises DataError, StoreError."""
        config, apart = self.config, self.scratch / PTX_DIRECTORY
        if config.ptx_examples is None:
            return []
        formatter = Formatter("completion", tokenizer)
        preparation = ExamplePreparation(config.ptx_examples, formatter, files, config.job.store, apart)
        preparation.run(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
        shutil.rmtree(apart / TOKENIZER_DIRECTORY)  # it is there already
        place = apart.rename(directory / PTX_DIRECTORY)
        return sorted(place.iterdir())


def _with_files(index: DatasetIndex, added: Sequence[Path], directory: Path) -> DatasetIndex:
    """The index of a data set with more files in it, written anew."""
    listed = list(index.files)
    for path in added:
        size, digest = hash_file(path)
        listed.append(ShardFile(path=path.relative_to(directory).as_posix(), bytes=size, sha256=digest))
    whole = index.model_copy(update={"files": listed})
    (directory / INDEX_NAME).write_bytes(whole.encode())
    return whole


def _no_model(name: str) -> Scorer:
    raise AssertionError(f"reward {name}: models are checked by their configuration")


def prepare(job: JobConfig, target: Target, scratch: Path) -> PreparationResult:
    """The proposal, or why there is none."""
    config = RLHFConfig.parse(job)
    return entry.answer(lambda: Inputs(config, target, scratch).propose())


if __name__ == "__main__":
    entry.main(prepare)
