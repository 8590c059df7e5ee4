"""What slot 0 does before any rank of a pretraining job starts: python -m trireme_trainer.pretrain.prepare."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path

from trireme.checkpoints import parse_s3_uri
from trireme.checkpoints.keys import MANIFEST_NAME
from trireme.protocol import JobConfig, ProposedResume, Target
from trireme_storage.fetch import Corrupt, read_manifest
from trireme_storage.store import ObjectStore, StoreError
from trireme_trainer.agent.preparation import PreparationResult
from trireme_trainer.agent.programs import StartingWeights
from trireme_trainer.checkpoint.proposal import Expected, ResumeFinder, ResumeProblem
from trireme_trainer.data.dataset import TOKENIZER_DIRECTORY, DatasetIndex
from trireme_trainer.data.errors import TokenizerUnusable
from trireme_trainer.data.prepare import DataConfig, Preparation
from trireme_trainer.data.tokenizer import TOKENIZER_FILE
from trireme_trainer.engines.interface import CheckpointFormatError
from trireme_trainer.engines.shapes import check_hugging_face
from trireme_trainer.preparation import entry
from trireme_trainer.preparation.places import Places
from trireme_trainer.pretrain.config import PretrainConfig
from trireme_trainer.pretrain.continuity import differences

CONFIG_NAME = "config.json"


class Inputs:
    """Prepares one attempt."""

    def __init__(self, config: PretrainConfig, target: Target, scratch: Path) -> None:
        self._config = config
        self._target = target
        self._places = Places(config.job, scratch)

    def propose(self) -> ProposedResume:
        """Raises StoreError, DataError, AttemptInStore, ResumeProblem."""
        places = self._places
        places.claim()
        finder = ResumeFinder(
            places.store,
            places.keys,
            places.cache,
            model_digest=self._config.model_digest,
            on_existing=self._config.spec.checkpoint.on_existing,
            differences=partial(differences, self._config),
        )
        self._check_starting_weights()
        # Before minutes of tokenising: would the answer be no anyway?
        finder.precheck(self._target.attempt)
        dataset = places.dataset(self._target.dataset, self._prepare_data)
        found = finder.find(Expected(self._target.attempt, dataset.digest, self._target.verified))
        return ProposedResume(dataset=dataset, resume=found.resume, rejected=found.rejected)

    def _check_starting_weights(self) -> None:
        """Whether the weights to start from are there and of this model; their bytes are checked when read."""
        starting = self._config.starting
        if starting is None:
            return
        uri = starting.uri
        store, prefix = ObjectStore(self._config.job.store, uri=uri), parse_s3_uri(uri)[1] + "/"
        try:
            found = read_manifest(store, prefix + MANIFEST_NAME, starting.digest).model_digest
        except Corrupt as error:
            if starting.digest is None and error.reason == "ManifestMissing" and store.exists(prefix + CONFIG_NAME):
                self._check_model_from_elsewhere(store, uri, prefix)
                return
            what = "checkpoint or model" if starting.digest is None else f"model with digest {starting.digest}"
            raise StoreError("StartFromNotFound", f"{uri} holds no {what}: {error}", retryable=True) from error
        if found != self._config.model_digest:
            message = f"{uri} is of model {found}, this job's is {self._config.model_digest}"
            raise ResumeProblem("CheckpointOfAnotherModel", message)

    def _check_model_from_elsewhere(self, store: ObjectStore, uri: str, prefix: str) -> None:
        """By its config.json; the engine compares the shapes of its tensors when it reads them."""
        try:
            check_hugging_face(store.get(prefix + CONFIG_NAME), f"{uri}/{CONFIG_NAME}", self._config.model)
        except CheckpointFormatError as error:
            raise ResumeProblem("CheckpointOfAnotherModel", str(error)) from error

    def _data(self) -> DataConfig:
        """What to prepare; weights to start from bring their tokenizer: another would give their rows other words."""
        data, starting = self._config.data, self._config.starting
        if starting is None or data.tokenizer_uri is not None:
            return data
        uri = starting.uri
        store, prefix = ObjectStore(self._config.job.store, uri=uri), parse_s3_uri(uri)[1]
        if not store.exists(f"{prefix}/{TOKENIZER_FILE}"):
            prefix = self._tokenizer_of_checkpoint(store, starting, prefix)
        return replace(data, tokenizer_uri=f"s3://{store.bucket}/{prefix}")

    def _tokenizer_of_checkpoint(self, store: ObjectStore, starting: StartingWeights, prefix: str) -> str:
        """Where the tokenizer of a checkpoint lies: with its job's data. Raises TokenizerUnusable."""
        with contextlib.suppress(Corrupt):
            trained_on = read_manifest(store, f"{prefix}/{MANIFEST_NAME}").dataset_digest.removeprefix("sha256:")
            job = prefix.rsplit("/", 2)[0]  # of <job>/a<attempt>/step-<n>
            folder = f"{job}/data/{trained_on}/{TOKENIZER_DIRECTORY}"
            if store.exists(f"{folder}/{TOKENIZER_FILE}"):
                return folder
        raise TokenizerUnusable(
            f"spec.{starting.field}: no {TOKENIZER_FILE} beside the weights of {starting.uri}; "
            "name the folder of their tokenizer in spec.data.tokenizer.uri"
        )

    def _prepare_data(self, directory: Path) -> DatasetIndex:
        return Preparation(self._data(), self._config.job.store, directory).run()


def prepare(job: JobConfig, target: Target, scratch: Path) -> PreparationResult:
    """The proposal, or why there is none."""
    config = PretrainConfig.parse(job)
    return entry.answer(lambda: Inputs(config, target, scratch).propose())


if __name__ == "__main__":
    entry.main(prepare)
