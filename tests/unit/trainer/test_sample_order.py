"""The order of samples knows seed and step, and nothing else."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trireme_trainer.data.order import MIX_BLOCK, SampleOrder, permute, share_of


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_a_permutation_reaches_every_position_once(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


@given(
    seed=st.integers(0, 2**31 - 1),
    step=st.integers(0, 10_000),
    data=st.sampled_from([1, 2, 4, 8]),
    sequences=st.lists(st.integers(1, 500), min_size=1, max_size=4),
)
def test_the_slices_of_any_data_axis_make_up_the_same_global_batch(
    seed: int, step: int, data: int, sequences: list[int]
) -> None:
    order = SampleOrder(sequences, [1.0] * len(sequences), seed, 16)
    slices = [sample for rank in range(data) for sample in share_of(order.samples(step), rank, data)]
    assert slices == SampleOrder(sequences, [1.0] * len(sequences), seed, 16).samples(step)
    assert all(0 <= s.index < sequences[s.source] for s in slices)


def test_every_sequence_is_read_once_before_any_is_read_again() -> None:
    order = SampleOrder([40], [1.0], seed=7, global_batch_size=8)
    first = [s for step in range(5) for s in order.samples(step)]
    second = [s for step in range(5, 10) for s in order.samples(step)]
    assert sorted(s.index for s in first) == sorted(s.index for s in second) == list(range(40))
    assert [s.index for s in first] != [s.index for s in second]
    assert {s.epoch for s in first} == {0}
    assert {s.epoch for s in second} == {1}


def test_sources_are_mixed_by_their_weights_and_none_with_weight_is_left_out() -> None:
    order = SampleOrder([10_000, 10_000, 10], [3.0, 1.0, 1e-9], seed=0, global_batch_size=MIX_BLOCK)
    counts = Counter(s.source for s in order.samples(0))
    assert counts[2] == 1
    assert counts[0] == pytest.approx(3 * counts[1], abs=4)


def test_different_seeds_and_steps_give_different_batches() -> None:
    batches = {tuple(SampleOrder([10_000], [1.0], seed, 8).samples(step)) for seed in range(4) for step in range(4)}
    assert len(batches) == 16


def test_a_source_without_sequences_is_never_drawn() -> None:
    order = SampleOrder([0, 5], [1.0, 1.0], seed=0, global_batch_size=64)
    assert {s.source for s in order.samples(3)} == {1}
    with pytest.raises(ValueError, match="no source"):
        SampleOrder([0, 5], [1.0, 0.0], seed=0, global_batch_size=1)
