"""A prepared data set of examples on disk: index.json, tokenizer files, and flat files of tokens, labels and ends."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from trireme.checkpoints import ShardFile
from trireme.protocol import StoreConfig
from trireme_storage.store import hash_file
from trireme_trainer.data.dataset import INDEX_NAME, TOKENIZER_DIRECTORY, DatasetIndex, SourceIndex
from trireme_trainer.data.errors import DataEmpty, DataUnreadable
from trireme_trainer.data.examples import Example, ExampleInvalid, Formatter, Invalid
from trireme_trainer.data.sources import Source, SourceConfig, SourceFile, open_text, readable, training_files

log = logging.getLogger(__name__)
DTYPE = "<i4"


@dataclass(frozen=True)
class ExampleSourceConfig:
    """One origin of examples."""

    files: SourceConfig
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ExamplesConfig:
    """What to prepare."""

    task: str
    sources: tuple[ExampleSourceConfig, ...]
    sequence_length: int
    overlong: Literal["refuse", "truncate", "drop"] = "refuse"
    validation_fraction: float | None = None
    validation_sources: tuple[ExampleSourceConfig, ...] = ()


class ExampleWriter:
    """Appends examples to flat files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tokens = 0
        self.examples = 0
        self._files = [path.with_suffix(suffix).open("wb") for suffix in (".tokens", ".labels")]
        self._ends = array("Q")

    def add(self, example: Example) -> None:
        """Append one."""
        for file, numbers in zip(self._files, (example.tokens, example.labels), strict=True):
            file.write(np.asarray(numbers, dtype=DTYPE).tobytes())
        self.tokens += len(example.tokens)
        self.examples += 1
        self._ends.append(self.tokens)

    def close(self) -> list[Path]:
        """Finish; the files written."""
        for file in self._files:
            file.close()
        ends = self.path.with_suffix(".ends")
        ends.write_bytes(np.asarray(self._ends, dtype="<u8").tobytes())
        return [*(Path(file.name) for file in self._files), ends]


class ExampleFile:
    """The examples of one source and split, memory-mapped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.ends = self._read(".ends", "<u8").astype(np.int64)
        self.tokens, self.labels = self._read(".tokens", DTYPE), self._read(".labels", DTYPE)

    def _read(self, suffix: str, dtype: str) -> npt.NDArray[Any]:
        path = self._path.with_suffix(suffix)
        if not path.is_file():
            raise DataUnreadable(f"file {path.name} of the prepared data set is missing")
        return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype=dtype)

    def __len__(self) -> int:
        return len(self.ends)


class ExamplePreparation:
    """One run of data preparation into a local directory."""

    def __init__(
        self, config: ExamplesConfig, formatter: Formatter, tokenizer: Path, store: StoreConfig, directory: Path
    ) -> None:
        """`tokenizer`: folder of the tokenizer's files, which become part of the data set."""
        self._config = config
        self._formatter = formatter
        self._tokenizer = tokenizer
        self._directory = directory
        self._cache = directory.parent / "source-cache"
        self._sources = [Source(s.files, store, self._cache) for s in config.sources]
        self._held_out = [Source(s.files, store, self._cache) for s in config.validation_sources]
        self._inputs = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
        self.truncated = self.dropped = 0

    def run(self, *, vocab_size: int, eos_token_id: int) -> DatasetIndex:
        """Prepare everything and write the index. Raises DataError, StoreError."""
        shutil.rmtree(self._directory, ignore_errors=True)
        shutil.copytree(self._tokenizer, self._directory / TOKENIZER_DIRECTORY)
        training, validation = training_files(self._sources, self._held_out)
        indexes: list[SourceIndex] = []
        paths = sorted((self._directory / TOKENIZER_DIRECTORY).iterdir())
        for held_out, sources, configs, files in (
            (False, self._sources, self._config.sources, training),
            (True, self._held_out, self._config.validation_sources, validation),
        ):
            for source, config, chosen in zip(sources, configs, files, strict=True):
                index, written = self._source(len(indexes), source, config, chosen, held_out)
                indexes.append(index)
                paths += written
        self._check(indexes)
        listed = []
        for path in paths:
            size, digest = hash_file(path)
            listed.append(ShardFile(path=path.relative_to(self._directory).as_posix(), bytes=size, sha256=digest))
        dataset = DatasetIndex(
            dtype=DTYPE,
            vocab_size=vocab_size,
            eos_token_id=eos_token_id,
            packing=False,
            inputs_sha256=self._inputs.hexdigest(),
            sources=indexes,
            files=listed,
        )
        (self._directory / INDEX_NAME).write_bytes(dataset.encode())
        shutil.rmtree(self._cache, ignore_errors=True)
        return dataset

    def _source(
        self, number: int, source: Source, config: ExampleSourceConfig, files: list[SourceFile], held_out: bool
    ) -> tuple[SourceIndex, list[Path]]:
        name = f"source-{number}"
        train = ExampleWriter(self._directory / f"{name}-train")
        validation = ExampleWriter(self._directory / f"{name}-validation")
        threshold = 2**64 if held_out else int((self._config.validation_fraction or 0.0) * 2**64)
        for file in files:
            self._inputs.update(f"\0{name}\0{file.name}\0".encode())
            for line, text in self._lines(source, file):
                digest = hashlib.sha256(text.encode()).digest()
                self._inputs.update(digest)
                example = self._example(text, config, f"{file.identity} line {line}")
                if example is not None:
                    (validation if int.from_bytes(digest[:8], "big") < threshold else train).add(example)
        written = train.close() + validation.close()
        index = SourceIndex(
            name=source.config.uri,
            weight=0.0 if held_out else source.config.weight,
            documents=train.examples,
            tokens=train.tokens,
            validation_documents=validation.examples,
            validation_tokens=validation.tokens,
            train_path=train.path.name,
            validation_path=validation.path.name,
        )
        log.info("%s: %d files, %d examples, %d tokens", source.config.uri, len(files), train.examples, train.tokens)
        return index, written

    def _lines(self, source: Source, file: SourceFile) -> Iterator[tuple[int, str]]:
        path = source.local(file)
        with readable(file), open_text(path, file.name) as text:
            for number, line in enumerate(text, 1):
                if line.strip():
                    yield number, line

    def _example(self, line: str, config: ExampleSourceConfig, where: str) -> Example | None:
        """The example of a line; None for one that is dropped. Raises ExampleInvalid."""
        limit = self._config.sequence_length
        try:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise Invalid(f"no JSON: {error}") from error
            if not isinstance(record, dict):
                raise Invalid("no JSON object")
            example = self._formatter.example(record, config.columns)
            if len(example.tokens) <= limit:
                return example
            if self._config.overlong == "drop":
                self.dropped += 1
                return None
            if self._config.overlong == "refuse":
                raise Invalid(f"{len(example.tokens)} tokens, data.sequenceLength is {limit}")
            cut = Example(example.tokens[:limit], example.labels[:limit])
            if all(label < 0 for label in cut.labels[1:]):
                raise Invalid(f"its prompt alone fills the {limit} tokens of data.sequenceLength")
        except Invalid as error:
            raise ExampleInvalid(f"{where}: {error}") from error
        self.truncated += 1
        return cut

    def _check(self, indexes: list[SourceIndex]) -> None:
        for source, index in zip(self._sources, indexes, strict=False):
            if not index.documents:
                raise DataEmpty(f"{source.config.uri}: no example is left to train on")
        wanted = bool(self._held_out) or self._config.validation_fraction is not None
        if wanted and not any(i.validation_documents for i in indexes):
            raise DataEmpty("validation: no example is held out")
