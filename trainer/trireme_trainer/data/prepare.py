"""Data preparation, once per job: train the tokenizer, tokenise every document once, store the result."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from trireme.checkpoints import JobKeys, ShardFile, parse_s3_uri
from trireme.protocol import DatasetRef, StoreConfig
from trireme_storage.store import ObjectStore, hash_file
from trireme_trainer.data.dataset import INDEX_NAME, TOKENIZER_DIRECTORY, DatasetIndex, SourceIndex
from trireme_trainer.data.errors import DataEmpty, NoTokens, TokenizerUnusable
from trireme_trainer.data.sources import Document, Source, SourceConfig, SourceFile, training_files
from trireme_trainer.data.tokenizer import TOKENIZER_FILE, TokenizerInfo, load_tokenizer, sample_bytes, train_tokenizer

log = logging.getLogger(__name__)
BATCH_CHARACTERS = 8 << 20
"""Text that is encoded at once, in parallel by pieces of documents, and with its tokens the most that is in memory."""


@dataclass(frozen=True)
class DataConfig:
    """What to prepare."""

    sources: tuple[SourceConfig, ...]
    sequence_length: int
    vocab_size: int
    """Entries of a trained tokenizer, and the most a given one may have."""
    model_vocab_size: int
    tokenizer_uri: str | None = None
    packing: bool = True
    validation_fraction: float | None = None
    validation_sources: tuple[SourceConfig, ...] = field(default=())


class TokenWriter:
    """Appends documents to a flat token file and, where samples must not cross documents, to a file of their ends."""

    def __init__(self, path: Path, info: TokenizerInfo, *, with_ends: bool) -> None:
        self.path = path
        self.ends_path = path.with_suffix(".ends") if with_ends else None
        self._info = info
        self._file = path.open("wb")
        self._ends = array("Q")
        self._pending: list[str | None] = []
        """Pieces that are not encoded yet, with None for the end of a document."""
        self._pending_characters = 0
        self._written = 0
        """Tokens in the file, the end-of-text tokens included."""
        self._document_began = 0

    @property
    def tokens(self) -> int:
        """Tokens of all documents, each with its end-of-text token; complete after close()."""
        return self._written

    @property
    def documents(self) -> int:
        """Documents that had a token; complete after close()."""
        return len(self._ends)

    def add(self, document: Document) -> None:
        """Append a document, closed by the end-of-text token."""
        for piece in document.pieces:
            self._pending.append(piece)
            self._pending_characters += len(piece)
            if self._pending_characters >= BATCH_CHARACTERS:
                self._encode()
        self._pending.append(None)

    def _encode(self) -> None:
        pieces = [piece for piece in self._pending if piece is not None]
        encoded = iter(self._info.tokenizer.encode_batch_fast(pieces, add_special_tokens=False))
        for piece in self._pending:
            if piece is not None:
                self._write(next(encoded).ids)
            elif self._written > self._document_began:
                self._write([self._info.eos_token_id])
                self._ends.append(self._written)
                self._document_began = self._written
        self._pending.clear()
        self._pending_characters = 0

    def _write(self, ids: list[int]) -> None:
        self._file.write(np.asarray(ids, dtype=self._info.dtype).tobytes())
        self._written += len(ids)

    def close(self) -> list[Path]:
        """Finish; the files written."""
        self._encode()
        self._file.close()
        if self.ends_path is None:
            return [self.path]
        self.ends_path.write_bytes(np.asarray(self._ends, dtype="<u8").tobytes())
        return [self.path, self.ends_path]


class Preparation:
    """One run of data preparation into a local directory."""

    def __init__(self, config: DataConfig, store: StoreConfig, directory: Path) -> None:
        self._config = config
        self._directory = directory
        self._store_config = store
        self._cache = directory.parent / "source-cache"
        self._sources = [Source(s, store, self._cache) for s in config.sources]
        self._held_out = [Source(s, store, self._cache) for s in config.validation_sources]
        self._inputs = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())

    def run(self) -> DatasetIndex:
        """Prepare everything and write the index. Raises DataError, StoreError."""
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True)
        training, validation = training_files(self._sources, self._held_out)
        info = self._make_tokenizer(training)
        indexes, paths = [], sorted((self._directory / TOKENIZER_DIRECTORY).iterdir())
        for number, (source, files) in enumerate(zip(self._sources, training, strict=True)):
            index, written = self._tokenise(number, source, files, info)
            indexes.append(index)
            paths += written
        for number, (source, files) in enumerate(zip(self._held_out, validation, strict=True), len(indexes)):
            index, written = self._tokenise(number, source, files, info, held_out=True)
            indexes.append(index)
            paths += written
        self._check(indexes)
        listed = []
        for path in paths:
            size, digest = hash_file(path)
            listed.append(ShardFile(path=path.relative_to(self._directory).as_posix(), bytes=size, sha256=digest))
        dataset = DatasetIndex(
            dtype=info.dtype,
            vocab_size=info.vocab_size,
            eos_token_id=info.eos_token_id,
            packing=self._config.packing,
            inputs_sha256=self._inputs.hexdigest(),
            sources=indexes,
            files=listed,
        )
        (self._directory / INDEX_NAME).write_bytes(dataset.encode())
        shutil.rmtree(self._cache, ignore_errors=True)
        return dataset

    def _make_tokenizer(self, training: list[list[SourceFile]]) -> TokenizerInfo:
        directory = self._directory / TOKENIZER_DIRECTORY
        if self._config.tokenizer_uri is None:
            texts = self._tokenizer_sample(training)
            info = train_tokenizer(texts, self._config.vocab_size, self._config.sequence_length, directory)
        else:
            fetch_folder(self._config.tokenizer_uri, self._store_config, directory)
            if not (directory / TOKENIZER_FILE).is_file():
                raise TokenizerUnusable(f"{self._config.tokenizer_uri}: no {TOKENIZER_FILE} there")
            info = load_tokenizer(directory)
        if info.vocab_size > self._config.model_vocab_size:
            raise TokenizerUnusable(
                f"the tokenizer has {info.vocab_size} entries, "
                f"the model's vocab_size is {self._config.model_vocab_size}"
            )
        return info

    def _tokenizer_sample(self, training: list[list[SourceFile]]) -> Iterator[str]:
        """Text spread over all files, chosen by their names, about sample_bytes() long."""
        budget = sample_bytes(self._config.vocab_size)
        total = sum(f.bytes for files in training for f in files)
        rate = min(1.0, budget / max(1, total))
        for source, files in zip(self._sources, training, strict=True):
            for file in files:
                chosen = int.from_bytes(hashlib.sha256(file.name.encode()).digest()[:4], "big") < rate * 2**32
                if file.bytes <= 1 << 20 and not chosen:
                    continue
                # A large file gives its share from its beginning, so that one huge file is a sample too.
                share = file.bytes if chosen and file.bytes <= 1 << 20 else int(file.bytes * rate) + 1
                for document in source.documents(file):
                    for piece in document.pieces:
                        # Of the piece after the share's end too a part is drawn: another sample is another digest.
                        yield piece[:share]
                        share -= len(piece)
                    if share <= 0:
                        break

    def _tokenise(
        self, number: int, source: Source, files: list[SourceFile], info: TokenizerInfo, *, held_out: bool = False
    ) -> tuple[SourceIndex, list[Path]]:
        name = f"source-{number}"
        ends = not self._config.packing
        train = TokenWriter(self._directory / f"{name}.train.bin", info, with_ends=ends)
        validation = TokenWriter(self._directory / f"{name}.validation.bin", info, with_ends=ends)
        threshold = 2**64 if held_out else int((self._config.validation_fraction or 0.0) * 2**64)
        for file in files:
            self._inputs.update(f"\0{name}\0{file.name}\0".encode())
            for document in source.documents(file):
                self._inputs.update(document.digest.to_bytes(8, "big"))
                (validation if document.digest < threshold else train).add(document)
        written = train.close() + validation.close()
        index = SourceIndex(
            name=source.config.uri,
            weight=0.0 if held_out else source.config.weight,
            documents=train.documents,
            tokens=train.tokens,
            validation_documents=validation.documents,
            validation_tokens=validation.tokens,
            train_path=train.path.name,
            validation_path=validation.path.name,
        )
        log.info("%s: %d files, %d documents, %d tokens", source.config.uri, len(files), train.documents, train.tokens)
        return index, written

    def _check(self, indexes: list[SourceIndex]) -> None:
        for source, index in zip(self._sources, indexes, strict=False):
            if index.documents + index.validation_documents == 0:
                raise DataEmpty(f"{source.config.uri}: no document in any of its files")
        needed = self._config.sequence_length + 1 if self._config.packing else 2
        tokens = [i.tokens for i in indexes[: len(self._sources)]]
        if max(tokens) < needed:
            names = ", ".join(s.config.uri for s in self._sources)
            raise NoTokens(f"{names}: {sum(tokens)} training tokens after filtering, one sample needs {needed}")
        wants_validation = bool(self._held_out) or self._config.validation_fraction is not None
        held = sum(i.validation_tokens for i in indexes)
        if wants_validation and held < needed:
            raise NoTokens(f"validation: {held} tokens, one sample needs {needed}")


def fetch_folder(uri: str, store_config: StoreConfig, directory: Path) -> None:
    """Copy a folder of small files from a path or the store. Raises TokenizerUnusable, StoreError."""
    directory.mkdir(parents=True, exist_ok=True)
    if uri.startswith("s3://"):
        store, prefix = ObjectStore(store_config, uri=uri), parse_s3_uri(uri)[1]
        for entry in store.entries(prefix + "/"):
            name = entry.key[len(prefix) + 1 :]
            if (
                "/" not in name
                and entry.bytes <= 256 << 20
                and Path(name).suffix in (".json", ".model", ".txt", ".jinja")
            ):
                store.download(entry.key, directory / name)
    else:
        root = Path(uri.removeprefix("file://"))
        if not root.is_dir():
            raise TokenizerUnusable(f"{root} is no folder")
        for path in root.iterdir():
            if path.is_file() and path.suffix in (".json", ".model", ".txt", ".jinja"):
                shutil.copyfile(path, directory / path.name)


def store_dataset(store: ObjectStore, keys: JobKeys, directory: Path, index: DatasetIndex) -> DatasetRef:
    """Upload a prepared data set, the index last. Raises StoreError."""
    reference = index.to_ref("")
    prefix = keys.dataset(reference.digest)
    if not store.exists(prefix + INDEX_NAME):
        for file in index.files:
            store.upload(directory / file.path, prefix + file.path)
        store.put(prefix + INDEX_NAME, index.encode())
    return reference.model_copy(update={"uri": keys.to_uri(prefix)})
