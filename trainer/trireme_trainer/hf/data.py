"""The prepared examples as trl takes them, in the order that the job's seed gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset
from torch.utils.data import Sampler

from trireme_trainer.data.dataset import INDEX_NAME, DatasetIndex
from trireme_trainer.data.example_files import ExampleFile
from trireme_trainer.data.order import SampleOrder


class Rows:
    """All examples of a split as rows, source after source; packed ones several to a row."""

    def __init__(self, files: list[ExampleFile], *, classified: bool = False) -> None:
        """`classified`: an example has one label, the number of its class."""
        self.counts = [len(file.rows) for file in files]
        self.first = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)
        files = [file for file in files if len(file)]
        ends = [file.ends[file.rows - 1] for file in files]
        lengths = [np.diff(of_file, prepend=0) for of_file in ends]
        self.lengths = np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int64)
        labels = [file.labels for file in files]
        columns = {
            "input_ids": _lists([file.tokens for file in files], ends),
            "labels": _numbers(labels) if classified else _lists(labels, ends),
        }
        if any(file.packed for file in files):
            of_examples = [np.diff(file.ends, prepend=0) for file in files]
            columns["seq_lengths"] = _lists(of_examples, [file.rows for file in files])
        self.dataset = Dataset(pa.table(columns))

    def __len__(self) -> int:
        return int(self.first[-1])


def _lists(numbers: list[npt.NDArray[Any]], ends: list[npt.NDArray[np.int64]]) -> pa.ChunkedArray:
    """A list per row, which ends at one of the ends; the numbers stay where they are, memory-mapped."""
    chunks = [
        pa.LargeListArray.from_arrays(
            np.concatenate([[0], of_file]).astype(np.int64), pa.array(np.asarray(values, dtype=np.int32))
        )
        for values, of_file in zip(numbers, ends, strict=True)
    ]
    return pa.chunked_array(chunks, type=pa.large_list(pa.int32()))


def _numbers(numbers: list[npt.NDArray[Any]]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(np.asarray(of_file, dtype=np.int64)) for of_file in numbers], type=pa.int64())


class ExampleDataset:
    """A prepared data set of examples."""

    def __init__(self, directory: Path, seed: int, examples_per_step: int) -> None:
        self.examples_per_step = examples_per_step
        index = DatasetIndex.model_validate_json((directory / INDEX_NAME).read_bytes())
        self.train = self.make_rows(index, [ExampleFile(directory / s.train_path) for s in index.sources])
        self.validation = self.make_rows(index, [ExampleFile(directory / s.validation_path) for s in index.sources])
        self._order = SampleOrder(self.train.counts, [s.weight for s in index.sources], seed, examples_per_step)

    def make_rows(self, index: DatasetIndex, files: list[ExampleFile]) -> Rows:
        """The rows of a split."""
        return Rows(files, classified=index.classes is not None)

    def rows(self, step: int) -> list[int]:
        """The training rows of the step that follows `step` completed steps."""
        return [int(self.train.first[s.source]) + s.index for s in self._order.samples(step)]

    def tokens(self, step: int) -> int:
        """Tokens of that step, padding not counted."""
        return int(self.train.lengths[self.rows(step)].sum())


class StepSampler(Sampler[int]):
    """The rows of all steps from `first` to `last`; each step's are one global batch."""

    def __init__(self, dataset: ExampleDataset, first: int, last: int) -> None:
        self._dataset, self._steps = dataset, range(first, last)

    def __len__(self) -> int:
        return len(self._steps) * self._dataset.examples_per_step

    def __iter__(self) -> Iterator[int]:
        for step in self._steps:
            yield from self._dataset.rows(step)
