"""What preparation reads of a model that a job names: its small files, before any weight is fetched."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trireme.checkpoints import parse_s3_uri
from trireme.checkpoints.keys import MANIFEST_NAME
from trireme.protocol import StoreConfig
from trireme_storage.fetch import Corrupt, read_manifest, verify_local
from trireme_storage.store import ObjectStore, StoreError
from trireme_trainer.agent.programs import StartingWeights
from trireme_trainer.data.errors import TokenizerUnusable
from trireme_trainer.data.prepare import fetch_folder
from trireme_trainer.hf.models import BaseUnusable

CONFIG_NAME, ADAPTER_CONFIG_NAME = "config.json", "adapter_config.json"


def fetch_small_files(model: StartingWeights, store_config: StoreConfig, directory: Path) -> Path:
    """Bring a model's configuration and tokenizer to a directory, which is emptied first.

    Raises StoreError, BaseUnusable.
    """
    shutil.rmtree(directory, ignore_errors=True)
    try:
        fetch_folder(model.uri, store_config, directory)
    except TokenizerUnusable as error:
        message = f"{error.message} on this node: is the volume mounted?"
        raise StoreError("StartFromNotFound", message, retryable=True) from error
    if model.digest is not None:
        store, prefix = ObjectStore(store_config, uri=model.uri), parse_s3_uri(model.uri)[1]
        try:
            manifest = read_manifest(store, f"{prefix}/{MANIFEST_NAME}", model.digest)
            verify_local(directory, [f for f in manifest.files if (directory / f.path).is_file()])
        except Corrupt as error:
            message = f"{model.uri} holds no model with digest {model.digest}: {error}"
            raise StoreError("StartFromNotFound", message, retryable=True) from error
    if not (directory / CONFIG_NAME).is_file():
        if (directory / ADAPTER_CONFIG_NAME).is_file():
            raise BaseUnusable(
                f"{model.uri} is an adapter and no whole model: set output.merge in the job that makes it"
            )
        raise StoreError("StartFromNotFound", f"{model.uri}: no {CONFIG_NAME} there", retryable=True)
    return directory


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
