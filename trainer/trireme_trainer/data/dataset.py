"""A prepared data set on disk: index.json, tokenizer files, and one flat token file per source and split.

The digest of a data set is that of the bytes of its index, which lists the size and SHA-256 of every other file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trireme.checkpoints import ShardFile, digest_bytes
from trireme.protocol import DatasetRef
from trireme.protocol.base import WireModel
from trireme_trainer.data.errors import DataUnreadable, NoTokens
from trireme_trainer.data.order import SampleId
from trireme_trainer.engines.interface import TokenBatch

INDEX_NAME = "index.json"
TOKENIZER_DIRECTORY = "tokenizer"
FORMAT = "trireme.dev/dataset/v1"


class SourceIndex(WireModel):
    """What one source became."""

    name: str
    weight: float
    documents: int
    rows: int | None = None
    """Of several examples each, where examples are packed."""
    tokens: int
    validation_documents: int
    validation_tokens: int
    train_path: str
    validation_path: str


class DatasetIndex(WireModel):
    """What a prepared data set consists of."""

    format: str = FORMAT
    dtype: str
    vocab_size: int
    eos_token_id: int
    packing: bool = True
    inputs_sha256: str
    """Of the names and bytes of all inputs and of the configuration they were prepared with."""
    sources: list[SourceIndex]
    files: list[ShardFile]
    classes: list[str] | None = None
    """Of task classification, in the order of their numbers."""

    def encode(self) -> bytes:
        """The bytes whose digest names the data set."""
        return self.to_json().encode()

    def to_ref(self, uri: str) -> DatasetRef:
        """The reference that is recorded in the job's status."""
        rows = [s.rows for s in self.sources if s.rows is not None]
        return DatasetRef(
            uri=uri,
            digest=digest_bytes(self.encode()),
            tokens=sum(s.tokens for s in self.sources),
            validation_tokens=sum(s.validation_tokens for s in self.sources),
            documents=sum(s.documents for s in self.sources),
            rows=sum(rows) if rows else None,
            vocab_size=self.vocab_size,
        )


class TokenFile:
    """The samples of one token file, memory-mapped.

    Packed: documents stand one after another and sample i of length L is tokens [i*L, (i+1)*L], whose last one is
    only a label. Not packed: a sample lies within one document, and what is missing to L is padded and masked.
    """

    def __init__(self, path: Path, index: DatasetIndex, sequence_length: int) -> None:
        if not path.is_file():
            raise DataUnreadable(f"token file {path.name} of the prepared data set is missing")
        self._length = sequence_length
        self._padding = index.eos_token_id
        self._tokens: npt.NDArray[Any] = np.zeros(0, dtype=index.dtype)
        if path.stat().st_size:
            self._tokens = np.memmap(path, dtype=index.dtype, mode="r")
        if index.packing:
            count = max(0, (len(self._tokens) - 1) // sequence_length)
            self._starts = np.arange(count, dtype=np.int64) * sequence_length
            self._stops = self._starts + sequence_length + 1
        else:
            self._starts, self._stops = self._cut(np.fromfile(path.with_suffix(".ends"), dtype="<u8").astype(np.int64))

    def _cut(self, ends: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(start, stop) of samples that never cross a document; every sample predicts at least one token."""
        begins = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        counts = np.maximum(0, -(-(ends - begins - 1) // self._length))
        document = np.repeat(np.arange(len(ends)), counts)
        nth = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = begins[document] + nth * self._length
        return starts, np.minimum(starts + self._length + 1, ends[document])

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """(L + 1 tokens, mask of the L labels) of one sample."""
        start, stop = int(self._starts[index]), int(self._stops[index])
        tokens = np.full(self._length + 1, self._padding, dtype=np.int64)
        tokens[: stop - start] = self._tokens[start:stop]
        mask = np.zeros(self._length, dtype=np.float32)
        mask[: stop - start - 1] = 1.0
        return tokens, mask


class TokenDataset:
    """The training and validation samples of a prepared data set."""

    def __init__(self, directory: Path, sequence_length: int) -> None:
        self.index = DatasetIndex.model_validate_json((directory / INDEX_NAME).read_bytes())
        self._train = [TokenFile(directory / s.train_path, self.index, sequence_length) for s in self.index.sources]
        self._validation = [
            TokenFile(directory / s.validation_path, self.index, sequence_length) for s in self.index.sources
        ]
        if not any(self.train_sequences):
            tokens = [s.tokens for s in self.index.sources]
            raise NoTokens(f"no source holds one sample of {sequence_length} tokens: {tokens} tokens")

    @property
    def train_sequences(self) -> list[int]:
        """Training samples in each source."""
        return [len(t) for t in self._train]

    @property
    def weights(self) -> list[float]:
        """Relative weight of each source."""
        return [s.weight for s in self.index.sources]

    def train(self, samples: Sequence[SampleId]) -> TokenBatch:
        """Some training samples."""
        return self._batch([self._train[s.source].read(s.index) for s in samples])

    def validation(self, positions: Sequence[tuple[int, int]]) -> TokenBatch:
        """Validation samples named (source, index)."""
        return self._batch([self._validation[source].read(index) for source, index in positions])

    def _batch(self, rows: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]) -> TokenBatch:
        tokens = np.stack([row for row, _ in rows])
        mask = None if self.index.packing else np.stack([row for _, row in rows])
        return TokenBatch(np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:]), mask)

    def validation_positions(self, count: int) -> list[tuple[int, int]]:
        """The same at most `count` validation samples for every evaluation, spread evenly over the sources."""
        sizes = [len(t) for t in self._validation]
        total = sum(sizes)
        bounds = np.cumsum(sizes)
        chosen = [k * total // min(count, total) for k in range(min(count, total))]
        sources = np.searchsorted(bounds, chosen, side="right")
        return [(int(s), int(k - (bounds[s] - sizes[s]))) for s, k in zip(sources, chosen, strict=True)]
