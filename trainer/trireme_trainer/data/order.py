"""The order in which samples are read: a function of seed and step only, never of the parallel layout.

A sample is one packed sequence. Step s trains the global sample numbers s*B .. s*B+B-1. A number is first given to a
source by the sources' weights, then mapped through that source's pseudo-random permutation of the epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]

MIX_BLOCK = 1024
"""Samples over which the sources' weights hold exactly."""
_ROUNDS = 6


def _mix(values: UInt64) -> UInt64:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijective 64-bit hash."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _key(*parts: int) -> int:
    """One 64-bit key for some numbers."""
    state = np.array([0x9E3779B97F4A7C15], dtype=np.uint64)
    for part in parts:
        state = _mix(state ^ np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    return int(state[0])


def permute(positions: Int64, size: int, key: int) -> Int64:
    """Where each position in [0, size) goes under the permutation named by `key`; O(1) memory in `size`.

    A balanced Feistel network (Luby, Rackoff 1988) over the next even power of two, cycle-walked back into the range
    (Black, Rogaway 2002). NumPy's own shuffles need the whole range in memory and may change between versions.
    """
    if size == 1:
        return np.zeros_like(positions)
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    round_keys = [np.uint64(_key(key, r)) for r in range(_ROUNDS)]

    def encrypt(values: UInt64) -> UInt64:
        left, right = values >> shift, values & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        return (left << shift) | right

    result = encrypt(positions.astype(np.uint64))
    outside = result >= np.uint64(size)
    while outside.any():
        result[outside] = encrypt(result[outside])
        outside = result >= np.uint64(size)
    return result.astype(np.int64)


@dataclass(frozen=True)
class SampleId:
    """One training sample: sequence `index` of source `source`, read for the `epoch`-th time."""

    source: int
    epoch: int
    index: int

    def __str__(self) -> str:
        return f"{self.source}:{self.epoch}:{self.index}"


class SampleOrder:
    """Which samples each step trains."""

    def __init__(self, sequences: Sequence[int], weights: Sequence[float], seed: int, global_batch_size: int) -> None:
        """`sequences`: packed sequences in each source; `weights`: relative, 0 leaves a source out."""
        self._sequences = list(sequences)
        self._seed = seed
        self._batch = global_batch_size
        usable = [w if n > 0 else 0.0 for w, n in zip(weights, sequences, strict=True)]
        total = sum(usable)
        if total <= 0:
            raise ValueError(f"no source has both weight and a sequence: weights {list(weights)}, {list(sequences)}")
        exact = [MIX_BLOCK * w / total for w in usable]
        # A source with weight is never rounded away.
        quotas = [max(1, int(q)) if q > 0 else 0 for q in exact]
        while sum(quotas) != MIX_BLOCK:
            step = 1 if sum(quotas) < MIX_BLOCK else -1
            candidates = [i for i, q in enumerate(quotas) if q > (1 if step < 0 else 0)]
            best = max(candidates, key=lambda i: step * (exact[i] - quotas[i]))
            quotas[best] += step
        self._quotas = quotas
        self._block_sources = np.repeat(np.arange(len(quotas)), quotas)
        self._block = lru_cache(maxsize=4)(self._make_block)

    def _make_block(self, block: int) -> tuple[Int64, Int64]:
        """(source, number within that source) of each of the block's samples."""
        order = permute(np.arange(MIX_BLOCK), MIX_BLOCK, _key(self._seed, 1, block))
        sources = self._block_sources[order]
        numbers = np.zeros(MIX_BLOCK, dtype=np.int64)
        for source, quota in enumerate(self._quotas):
            mine = sources == source
            numbers[mine] = block * quota + np.arange(quota)
        return sources, numbers

    @lru_cache(maxsize=64)  # noqa: B019 one SampleOrder lives as long as its process
    def _epoch_key(self, source: int, epoch: int) -> int:
        return _key(self._seed, 2, source, epoch)

    def samples(self, step: int) -> list[SampleId]:
        """The global batch of the step that follows `step` completed steps."""
        numbers = np.arange(step * self._batch, (step + 1) * self._batch)
        sources, positions = self._draw(numbers)
        epochs, indices = np.zeros_like(positions), np.zeros_like(positions)
        for source in np.unique(sources):
            size = self._sequences[int(source)]
            mine = sources == source
            epochs[mine], within = np.divmod(positions[mine], size)
            for epoch in np.unique(epochs[mine]):
                now = within[epochs[mine] == epoch]
                indices[mine & (epochs == epoch)] = permute(now, size, self._epoch_key(int(source), int(epoch)))
        return [SampleId(*map(int, row)) for row in zip(sources, epochs, indices, strict=True)]

    def _draw(self, numbers: Int64) -> tuple[Int64, Int64]:
        """(source, number within that source) of each global sample number."""
        blocks = numbers // MIX_BLOCK
        sources, positions = np.zeros_like(numbers), np.zeros_like(numbers)
        for block in np.unique(blocks):
            mine = blocks == block
            of_sources, of_positions = self._block(int(block))
            sources[mine], positions[mine] = (
                of_sources[numbers[mine] % MIX_BLOCK],
                of_positions[numbers[mine] % MIX_BLOCK],
            )
        return sources, positions


def share_of(batch: Sequence[SampleId], data_parallel_rank: int, data_parallel_size: int) -> Sequence[SampleId]:
    """The slice of a global batch that one data-parallel rank trains."""
    share = len(batch) // data_parallel_size
    return batch[data_parallel_rank * share : (data_parallel_rank + 1) * share]


def samples_digest(batch: Sequence[SampleId]) -> str:
    """Short digest of the ids of a global batch, by which two runs show that they read the same."""
    return hashlib.sha256(",".join(map(str, batch)).encode()).hexdigest()[:12]
