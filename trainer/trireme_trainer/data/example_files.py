"""A prepared data set of examples on disk: index.json, tokenizer files, and flat files of tokens, labels and ends."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from trireme.checkpoints import ShardFile
from trireme.protocol import StoreConfig
from trireme_storage.store import hash_file
from trireme_trainer.data.classes import Classes
from trireme_trainer.data.dataset import INDEX_NAME, TOKENIZER_DIRECTORY, DatasetIndex, SourceIndex
from trireme_trainer.data.errors import DataEmpty, DataUnreadable
from trireme_trainer.data.examples import Example, ExampleInvalid, ExampleMaker, Invalid
from trireme_trainer.data.packing import best_fit_rows
from trireme_trainer.data.sources import Source, SourceConfig, SourceFile, open_text, readable, training_files
from trireme_trainer.data.stdlib_records import STDLIB_URI, documented_functions, function_records

log = logging.getLogger(__name__)
DTYPE = "<i4"
PARTS, ROWS = (".tokens", ".labels"), ".rows"
RECORDS, RECORD_ENDS = ".records", ".record-ends"
Int64 = npt.NDArray[np.int64]


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
    """Most tokens of an example."""
    overlong: Literal["refuse", "truncate", "drop"] = "refuse"
    packing: bool = False
    """Several examples in one row of at most sequence_length tokens."""
    validation_fraction: float | None = None
    validation_sources: tuple[ExampleSourceConfig, ...] = ()
    length_field: str = "data.sequenceLength"
    """Of the spec, where the most tokens of an example are given."""


class ExampleWriter:
    """Appends examples to flat files; with `row_tokens` packs them into rows of so many tokens at most."""

    def __init__(self, path: Path, row_tokens: int | None = None) -> None:
        self.path = path
        self.tokens = 0
        self.examples = 0
        self.rows: int | None = None
        """Rows they were packed into, once closed."""
        self._row_tokens = row_tokens
        self._files = [path.with_suffix(suffix).open("wb") for suffix in PARTS]
        self._ends = array("Q")
        self._records = bytearray()
        self._record_ends = array("Q")

    def add(self, example: Example) -> None:
        """Append one."""
        for file, numbers in zip(self._files, (example.tokens, example.labels), strict=True):
            file.write(np.asarray(numbers, dtype=DTYPE).tobytes())
        self.tokens += len(example.tokens)
        self.examples += 1
        self._ends.append(self.tokens)
        self._records += example.record
        self._record_ends.append(len(self._records))

    def close(self) -> list[Path]:
        """Finish; the files written."""
        for file in self._files:
            file.close()
        ends, written = np.asarray(self._ends, dtype="<u8"), [Path(file.name) for file in self._files]
        if self._row_tokens is not None:
            ends, row_ends = self._pack(ends.astype(np.int64), self._row_tokens)
            written.append(self.path.with_suffix(ROWS))
            written[-1].write_bytes(row_ends.astype("<u8").tobytes())
        if self._records:
            assert self.rows is None, "records stay in the order of their examples"
            for suffix, data in (
                (RECORDS, bytes(self._records)),
                (RECORD_ENDS, np.asarray(self._record_ends, dtype="<u8").tobytes()),
            ):
                written.append(self.path.with_suffix(suffix))
                written[-1].write_bytes(data)
        written.append(self.path.with_suffix(".ends"))
        written[-1].write_bytes(ends.astype("<u8").tobytes())
        return written

    def _pack(self, ends: Int64, row_tokens: int) -> tuple[Int64, Int64]:
        """Bring the examples into the order of their rows; their ends in tokens, and the rows' in examples."""
        begins, lengths = np.concatenate([[0], ends[:-1]]).astype(np.int64), np.diff(ends, prepend=0)
        rows = best_fit_rows(lengths, row_tokens)
        self.rows = len(rows)
        order = [number for row in rows for number in row]
        for suffix in PARTS if order else ():
            path, unpacked = self.path.with_suffix(suffix), self.path.with_suffix(suffix + "-unpacked")
            path.rename(unpacked)
            numbers = np.memmap(unpacked, dtype=DTYPE, mode="r")
            with path.open("wb") as file:
                for number in order:
                    file.write(numbers[begins[number] : ends[number]].tobytes())
            unpacked.unlink()
        return np.cumsum(lengths[order]), np.cumsum([len(row) for row in rows], dtype=np.int64)


class ExampleFile:
    """The examples of one source and split, memory-mapped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.ends = self._read(".ends", "<u8").astype(np.int64)
        """Where each example ends, in tokens."""
        self.packed = path.with_suffix(ROWS).is_file()
        self.rows = self._read(ROWS, "<u8").astype(np.int64) if self.packed else np.arange(1, len(self.ends) + 1)
        """Where each row ends, in examples; a row is one example unless they are packed."""
        self.tokens, self.labels = self._read(".tokens", DTYPE), self._read(".labels", DTYPE)
        """Of task classification one label an example, else one a token."""

    def records(self) -> list[bytes]:
        """What else was kept of each example."""
        ends = self._read(RECORD_ENDS, "<u8").astype(np.int64) if len(self) else np.zeros(0, dtype=np.int64)
        data = self._read(RECORDS, "u1") if len(self) else np.zeros(0, dtype=np.uint8)
        begins = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        return [data[begin:end].tobytes() for begin, end in zip(begins[: len(ends)], ends, strict=True)]

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
        self, config: ExamplesConfig, formatter: ExampleMaker, tokenizer: Path, store: StoreConfig, directory: Path
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

    def run(self, *, vocab_size: int, eos_token_id: int, classes: Classes | None = None) -> DatasetIndex:
        """Prepare everything and write the index; `classes`: those that the formatter numbers.

        Raises DataError, StoreError.
        """
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
        names = self._settle(classes, indexes) if classes is not None else None
        listed = []
        for path in paths:
            size, digest = hash_file(path)
            listed.append(ShardFile(path=path.relative_to(self._directory).as_posix(), bytes=size, sha256=digest))
        dataset = DatasetIndex(
            dtype=DTYPE,
            vocab_size=vocab_size,
            eos_token_id=eos_token_id,
            packing=self._config.packing,
            inputs_sha256=self._inputs.hexdigest(),
            sources=indexes,
            files=listed,
            classes=names,
        )
        (self._directory / INDEX_NAME).write_bytes(dataset.encode())
        shutil.rmtree(self._cache, ignore_errors=True)
        return dataset

    def _source(
        self, number: int, source: Source, config: ExampleSourceConfig, files: list[SourceFile], held_out: bool
    ) -> tuple[SourceIndex, list[Path]]:
        name = f"source-{number}"
        row_tokens = self._config.sequence_length if self._config.packing else None
        train = ExampleWriter(self._directory / f"{name}-train", row_tokens)
        validation = ExampleWriter(self._directory / f"{name}-validation", row_tokens)
        threshold = 2**64 if held_out else int((self._config.validation_fraction or 0.0) * 2**64)
        for file, lines in self._read(source, files):
            self._inputs.update(f"\0{name}\0{file.name}\0".encode())
            for line, text in lines:
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
            rows=train.rows,
            tokens=train.tokens,
            validation_documents=validation.examples,
            validation_tokens=validation.tokens,
            train_path=train.path.name,
            validation_path=validation.path.name,
        )
        log.info("%s: %d files, %d examples, %d tokens", source.config.uri, len(files), train.examples, train.tokens)
        return index, written

    def _read(self, source: Source, files: list[SourceFile]) -> Iterator[tuple[SourceFile, Iterable[tuple[int, str]]]]:
        """Each file with the numbers of its lines that hold a record, and the records as JSON."""
        if source.config.uri != STDLIB_URI:
            yield from ((file, self._lines(source, file)) for file in files)
            return
        # A record has something of another module in it, so all modules are read before the first record is made.
        modules = []
        for file in files:
            with readable(file), open_text(source.local(file), file.name) as text:
                try:
                    modules.append(documented_functions(text.read()))
                except SyntaxError as error:
                    raise DataUnreadable(f"{file.identity}: {error}; leave it out with exclude") from error
        for file, records in zip(files, function_records(modules), strict=True):
            yield file, ((number, json.dumps(record)) for number, record in records)

    def _lines(self, source: Source, file: SourceFile) -> Iterator[tuple[int, str]]:
        with readable(file), open_text(source.local(file), file.name) as text:
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
            length = self._formatter.length(example)
            if length <= limit:
                return example
            if self._config.overlong == "drop":
                self.dropped += 1
                return None
            if self._config.overlong == "refuse":
                raise Invalid(f"{length} tokens, {self._config.length_field} is {limit}")
            cut = self._formatter.cut(example, limit)
        except Invalid as error:
            raise ExampleInvalid(f"{where}: {error}") from error
        self.truncated += 1
        return cut

    def _settle(self, classes: Classes, indexes: list[SourceIndex]) -> list[str]:
        """The classes' names in order, and their final numbers in the files. Raises LabelsUnusable."""
        names, numbers = classes.settle()
        for path in (path for i in indexes for path in (i.train_path, i.validation_path)):
            labels = (self._directory / path).with_suffix(".labels")
            found = np.fromfile(labels, dtype=DTYPE)
            labels.write_bytes(np.asarray(numbers, dtype=DTYPE)[found].tobytes())
        return names

    def _check(self, indexes: list[SourceIndex]) -> None:
        for source, index in zip(self._sources, indexes, strict=False):
            if not index.documents:
                raise DataEmpty(f"{source.config.uri}: no example is left to train on")
        wanted = bool(self._held_out) or self._config.validation_fraction is not None
        if wanted and not any(i.validation_documents for i in indexes):
            raise DataEmpty("validation: no example is held out")
