"""What slot 0 does before any rank of a job that trains a Hugging Face model starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from trireme.checkpoints import parse_s3_uri
from trireme.planning import DeviceMemory
from trireme.protocol import DatasetRef, ModelSizes, ProposedResume, Target
from trireme_trainer.checkpoint.proposal import Expected, ResumeFinder
from trireme_trainer.data.dataset import INDEX_NAME, DatasetIndex
from trireme_trainer.hf.base import fetch_small_files, load_tokenizer
from trireme_trainer.hf.config import HFConfig
from trireme_trainer.hf.models import check_safetensors, sizes
from trireme_trainer.preparation.places import Places


class HFInputs:
    """Prepares one attempt. A kind says what its data are."""

    def __init__(self, config: HFConfig[Any], target: Target, scratch: Path) -> None:
        self.config = config
        self.scratch = scratch / "preparation"
        self._target = target
        self._places = Places(config.job, scratch)
        self._examples: int | None = None
        self.memory: DeviceMemory | None = None
        """What the fullest device needs, where check() found it."""

    def propose(self) -> ProposedResume:
        """Raises StoreError, DataError, AttemptInStore, ResumeProblem."""
        places, config = self._places, self.config
        places.claim()
        finder = ResumeFinder(
            places.store,
            places.keys,
            places.cache,
            model_digest=config.model_digest,
            on_existing=config.spec.checkpoint.on_existing,
            differences=lambda manifest: config.differences(manifest, self._examples),
        )
        models = {name: self._small_files(name) for name in config.weights}
        base = models[config.base_name]
        counted = self.check(models)
        finder.precheck(self._target.attempt)
        dataset = places.dataset(self._target.dataset, lambda directory: self._prepare_data(base, directory))
        self._examples = dataset.documents if dataset.rows is None else dataset.rows
        counted = self.parameters(models, counted, dataset)
        found = finder.find(Expected(self._target.attempt, dataset.digest, self._target.verified))
        return ProposedResume(
            dataset=dataset,
            resume=found.resume,
            rejected=found.rejected,
            parameters=counted if config.adapter else None,
            memory=self.memory,
        )

    def _small_files(self, name: str) -> Path:
        weights = self.config.weights[name]
        if weights.folder is not None:
            check_safetensors(weights.folder)
        return fetch_small_files(weights, self.config.job.store, self.scratch / "models" / name)

    def dataset_index(self, dataset: DatasetRef) -> DatasetIndex:
        """What the prepared data set in the store consists of. Raises StoreError."""
        return DatasetIndex.model_validate_json(self._places.store.get(f"{parse_s3_uri(dataset.uri)[1]}/{INDEX_NAME}"))

    def parameters(self, models: dict[str, Path], counted: ModelSizes, dataset: DatasetRef) -> ModelSizes:
        """The sizes that check() found, where the data change nothing about them. Raises DataError, StoreError."""
        return counted

    def check(self, models: dict[str, Path]) -> ModelSizes:
        """Whether the models, by their small files, serve this job; the sizes of the one that is trained.

        Raises DataError.
        """
        return sizes(models[self.config.base_name], self.config.spec.method, self.config.head)

    def _prepare_data(self, base: Path, directory: Path) -> DatasetIndex:
        return self.prepare_data(load_tokenizer(base), directory)

    def prepare_data(self, tokenizer: PreTrainedTokenizerBase, directory: Path) -> DatasetIndex:
        """Make the data set in a directory. Raises DataError, StoreError."""
        raise NotImplementedError

    def save_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> Path:
        """A folder with the tokenizer's files, which become part of the data set."""
        files = self.scratch / "tokenizer"
        shutil.rmtree(files, ignore_errors=True)
        tokenizer.save_pretrained(files)
        return files
