"""What slot 0 does before any rank of a fine-tuning job starts: python -m trireme_trainer.finetune.prepare."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trireme.checkpoints import parse_s3_uri
from trireme.checkpoints.keys import MANIFEST_NAME
from trireme.protocol import JobConfig, ProposedResume, Target
from trireme_storage.fetch import Corrupt, read_manifest, verify_local
from trireme_storage.store import ObjectStore, StoreError
from trireme_trainer.agent.preparation import PreparationResult
from trireme_trainer.checkpoint.proposal import Expected, ResumeFinder
from trireme_trainer.data.dataset import DatasetIndex
from trireme_trainer.data.errors import TokenizerUnusable
from trireme_trainer.data.example_files import ExamplePreparation
from trireme_trainer.data.examples import Formatter
from trireme_trainer.data.prepare import fetch_folder
from trireme_trainer.finetune.config import FineTuneConfig
from trireme_trainer.finetune.model import BaseUnusable, sizes
from trireme_trainer.preparation import entry
from trireme_trainer.preparation.places import Places

CONFIG_NAME, ADAPTER_CONFIG_NAME = "config.json", "adapter_config.json"


class Inputs:
    """Prepares one attempt."""

    def __init__(self, config: FineTuneConfig, target: Target, scratch: Path) -> None:
        self._config = config
        self._target = target
        self._scratch = scratch / "preparation"
        self._places = Places(config.job, scratch)
        self._examples: int | None = None

    def propose(self) -> ProposedResume:
        """Raises StoreError, DataError, AttemptInStore, ResumeProblem."""
        places, config = self._places, self._config
        places.claim()
        finder = ResumeFinder(
            places.store,
            places.keys,
            places.cache,
            model_digest=config.model_digest,
            on_existing=config.spec.checkpoint.on_existing,
            differences=lambda manifest: config.differences(manifest, self._examples),
        )
        base = self._base()
        counted = sizes(base, config.spec.method)
        finder.precheck(self._target.attempt)
        dataset = places.dataset(self._target.dataset, lambda directory: self._prepare_data(base, directory))
        self._examples = dataset.documents
        found = finder.find(Expected(self._target.attempt, dataset.digest, self._target.verified))
        return ProposedResume(
            dataset=dataset,
            resume=found.resume,
            rejected=found.rejected,
            parameters=counted if config.adapter else None,
        )

    def _base(self) -> Path:
        """A folder with the base's small files: its configuration and tokenizer. Raises StoreError, BaseUnusable."""
        base, directory = self._config.base, self._scratch / "base"
        shutil.rmtree(directory, ignore_errors=True)
        try:
            fetch_folder(base.uri, self._config.job.store, directory)
        except TokenizerUnusable as error:
            message = f"{error.message} on this node: is the volume mounted?"
            raise StoreError("StartFromNotFound", message, retryable=True) from error
        if base.digest is not None:
            store, prefix = ObjectStore(self._config.job.store, uri=base.uri), parse_s3_uri(base.uri)[1]
            try:
                manifest = read_manifest(store, f"{prefix}/{MANIFEST_NAME}", base.digest)
                verify_local(directory, [f for f in manifest.files if (directory / f.path).is_file()])
            except Corrupt as error:
                message = f"{base.uri} holds no model with digest {base.digest}: {error}"
                raise StoreError("StartFromNotFound", message, retryable=True) from error
        if not (directory / CONFIG_NAME).is_file():
            if (directory / ADAPTER_CONFIG_NAME).is_file():
                raise BaseUnusable(
                    f"{base.uri} is an adapter and no whole model: set output.merge in the job that makes it"
                )
            raise StoreError("StartFromNotFound", f"{base.uri}: no {CONFIG_NAME} there", retryable=True)
        return directory

    def _prepare_data(self, base: Path, directory: Path) -> DatasetIndex:
        tokenizer, data = load_tokenizer(base), self._config.spec.data
        formatter = Formatter(self._config.spec.task, tokenizer, data.chat_template)
        if data.chat_template is not None:
            tokenizer.chat_template = data.chat_template
        files = self._scratch / "tokenizer"
        shutil.rmtree(files, ignore_errors=True)
        tokenizer.save_pretrained(files)
        preparation = ExamplePreparation(self._config.examples, formatter, files, self._config.job.store, directory)
        return preparation.run(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder of Hugging Face layout. Raises TokenizerUnusable."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise TokenizerUnusable(f"the base has no tokenizer that loads: {error}") from error
    if tokenizer.eos_token_id is None:
        raise TokenizerUnusable("the base's tokenizer has no end-of-text token")
    if not tokenizer.is_fast:
        raise TokenizerUnusable("the base's tokenizer has no tokenizer.json")
    return tokenizer


def prepare(job: JobConfig, target: Target, scratch: Path) -> PreparationResult:
    """The proposal, or why there is none."""
    config = FineTuneConfig.parse(job)
    return entry.answer(lambda: Inputs(config, target, scratch).propose())


if __name__ == "__main__":
    entry.main(prepare)
