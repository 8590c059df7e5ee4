"""What slot 0 does before any rank starts: preflight, data preparation, choice of the resume point.

python -m trireme_trainer.pretrain.prepare --job-file F --target-file F --scratch D --result-file F
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from trireme.checkpoints import JobKeys, parse_s3_uri
from trireme.checkpoints.keys import MANIFEST_NAME
from trireme.protocol import DatasetRef, InputsProblem, JobConfig, ProposedResume, Target
from trireme_trainer.agent.channel import AGENT_PID_ENV, die_with_parent
from trireme_trainer.agent.preparation import PreparationResult
from trireme_trainer.agent.programs import StartingWeights
from trireme_trainer.checkpoint.fetch import Corrupt, NodeCache, read_manifest
from trireme_trainer.checkpoint.proposal import AttemptInStore, Expected, ResumeFinder, ResumeProblem
from trireme_trainer.checkpoint.store import ObjectNotFound, ObjectStore, StoreError
from trireme_trainer.data.dataset import INDEX_NAME, TOKENIZER_DIRECTORY
from trireme_trainer.data.errors import DataError, TokenizerUnusable
from trireme_trainer.data.prepare import DataConfig, Preparation, store_dataset
from trireme_trainer.data.tokenizer import TOKENIZER_FILE
from trireme_trainer.engines.interface import CheckpointFormatError
from trireme_trainer.engines.shapes import check_hugging_face
from trireme_trainer.pretrain.config import PretrainConfig
from trireme_trainer.pretrain.continuity import differences

CONFIG_NAME = "config.json"
log = logging.getLogger(__name__)


def claim(store: ObjectStore, keys: JobKeys, job: JobConfig) -> None:
    """Leave or check the owner marker; also proves that these credentials may write. Raises ResumeProblem."""
    identity = job.job.model_dump(mode="json", by_alias=True)
    try:
        found = json.loads(store.get(keys.owner))
    except ObjectNotFound:
        store.put(keys.owner, json.dumps(identity, sort_keys=True).encode())
        return
    except ValueError:
        found = None
    if found != identity:
        raise ResumeProblem("StoreOwnedByAnotherJob", f"{keys.to_uri(keys.owner)} names {found}, this is {identity}")


class Inputs:
    """Prepares one attempt."""

    def __init__(self, config: PretrainConfig, target: Target, scratch: Path) -> None:
        job = config.job
        self._config = config
        self._target = target
        self._scratch = scratch
        self._store = ObjectStore(job.store)
        self._keys = JobKeys(job.store.uri, job.job.namespace, job.job.name, job.job.uid)
        self._cache = NodeCache(scratch / "cache")

    def propose(self) -> ProposedResume:
        """Raises StoreError, DataError, AttemptInStore, ResumeProblem."""
        self._store.check_bucket()
        claim(self._store, self._keys, self._config.job)
        finder = ResumeFinder(
            self._store,
            self._keys,
            self._cache,
            model_digest=self._config.model_digest,
            on_existing=self._config.spec.checkpoint.on_existing,
            differences=partial(differences, self._config),
        )
        self._check_starting_weights()
        # Before minutes of tokenising: would the answer be no anyway?
        finder.precheck(self._target.attempt)
        dataset = self._dataset()
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

    def _dataset(self) -> DatasetRef:
        recorded = self._target.dataset
        if recorded is not None and self._store.exists(parse_s3_uri(recorded.uri)[1] + "/" + INDEX_NAME):
            return recorded
        directory = self._scratch / "preparation" / "dataset"
        index = Preparation(self._data(), self._config.job.store, directory).run()
        dataset = store_dataset(self._store, self._keys, directory, index)
        if recorded is not None and recorded.digest != dataset.digest:
            raise ResumeProblem(
                "DatasetMismatch", f"the prepared data is {dataset.digest}, the job was started with {recorded.digest}"
            )
        place = self._cache.dataset(dataset.digest)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            directory.rename(place)
        return dataset


def prepare(config: PretrainConfig, target: Target, scratch: Path) -> PreparationResult:
    """The proposal, or why there is none."""
    try:
        return PreparationResult(proposal=Inputs(config, target, scratch).propose())
    except (StoreError, DataError) as error:
        problem = InputsProblem(reason=error.reason, message=error.message, retryable=error.retryable)
    except AttemptInStore as error:
        problem = InputsProblem(
            reason="AttemptInStore", message=error.message, retryable=True, attempt_in_store=error.attempt
        )
    except ResumeProblem as error:
        problem = InputsProblem(reason=error.reason, message=error.message, retryable=False)
    return PreparationResult(problem=problem)


def main() -> None:
    """Entry point."""
    if AGENT_PID_ENV in os.environ:
        die_with_parent(int(os.environ[AGENT_PID_ENV]))
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--job-file", "--target-file", "--scratch", "--result-file"):
        parser.add_argument(name, type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="[prepare] %(levelname).1s %(name)s: %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    config = PretrainConfig.parse(JobConfig.model_validate_json(arguments.job_file.read_bytes()))
    target = Target.model_validate_json(arguments.target_file.read_bytes())
    result = prepare(config, target, arguments.scratch)
    written = arguments.result_file.with_suffix(".part")
    written.write_text(result.to_json())
    written.rename(arguments.result_file)


if __name__ == "__main__":
    main()
