"""The prepared comparisons and prompts as trl's trainers take them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset

from trireme_trainer.data.dataset import DatasetIndex
from trireme_trainer.data.example_files import ExampleFile
from trireme_trainer.data.preferences import Part
from trireme_trainer.hf.data import ExampleDataset, Rows


class Comparisons(Rows):
    """Rows of prompt_ids, chosen_ids and rejected_ids."""

    def __init__(self, files: list[ExampleFile]) -> None:
        self.counts = [len(file) for file in files]
        self.first = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)
        files = [file for file in files if len(file)]
        counted = [[_counts(file, part) for part in Part] for file in files]
        # The model reads the prompt twice, once with each answer.
        lengths = [2 * prompt + chosen + rejected for prompt, chosen, rejected in counted]
        self.lengths = np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int64)
        columns = {
            f"{part.name.lower()}_ids": pa.chunked_array(
                [_part(file, part, counts[part]) for file, counts in zip(files, counted, strict=True)],
                type=pa.large_list(pa.int32()),
            )
            for part in Part
        }
        self.dataset = Dataset(pa.table(columns))


def _counts(file: ExampleFile, part: Part) -> npt.NDArray[np.int64]:
    """Tokens that each example has in a part."""
    begins = np.concatenate([[0], file.ends[:-1]])
    of_part = np.concatenate([[0], np.cumsum(file.labels == part)])
    counts: npt.NDArray[np.int64] = of_part[file.ends] - of_part[begins]
    return counts


def _part(file: ExampleFile, part: Part, counts: npt.NDArray[np.int64]) -> pa.Array:
    tokens = np.asarray(file.tokens[file.labels == part], dtype=np.int32)
    return pa.LargeListArray.from_arrays(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), pa.array(tokens))


class ComparisonDataset(ExampleDataset):
    """A prepared data set of comparisons."""

    def make_rows(self, index: DatasetIndex, files: list[ExampleFile]) -> Comparisons:
        """The rows of a split."""
        return Comparisons(files)


@dataclass(frozen=True)
class Prompt:
    """What the policy is asked."""

    tokens: list[int]
    text: str
    messages: list[dict[str, str]] | None
    """That the text was rendered from, if any."""
    fields: dict[str, Any]
    """What else its record holds."""


class PromptRows(Rows):
    """Rows of a prompt's text and the number by which the whole prompt is found."""

    def __init__(self, files: list[ExampleFile]) -> None:
        super().__init__(files)
        self._records = [record for file in files for record in file.records()]
        self._tokens = [file.tokens[begin:end] for file in files for begin, end in _spans(file)]
        texts = [json.loads(record)["prompt"] for record in self._records]
        self.dataset = Dataset.from_dict({"prompt": texts, "row": list(range(len(texts)))})

    def prompt(self, row: int) -> Prompt:
        """One of them."""
        record = json.loads(self._records[row])
        tokens = [int(token) for token in self._tokens[row]]
        return Prompt(tokens, record["prompt"], record["messages"], record["fields"])


def _spans(file: ExampleFile) -> list[tuple[int, int]]:
    return [(int(begin), int(end)) for begin, end in zip([0, *file.ends[:-1]], file.ends, strict=False)]


class PromptDataset(ExampleDataset):
    """A prepared data set of prompts."""

    train: PromptRows
    validation: PromptRows

    def make_rows(self, index: DatasetIndex, files: list[ExampleFile]) -> PromptRows:
        """The rows of a split."""
        return PromptRows(files)
