"""What the overhead page claims follows from the blocks."""

from __future__ import annotations

import pytest
from benchmarks.overhead.blocks import BARE, JOB, JOB_SAVING, Block, ratios, steady, table


def test_a_step_lasts_from_one_completed_step_to_the_next_after_the_warm_up() -> None:
    assert steady([10.0, 14.0, 15.0, 17.0], warmup_steps=2) == [1.0, 2.0]


def test_a_block_counts_its_slowest_step() -> None:
    assert Block(JOB, [0.1, 0.1, 0.8], tokens_per_step=100).tokens_per_second == pytest.approx(300)


def test_a_block_is_compared_with_the_bare_loop_of_its_own_round() -> None:
    """A machine that is half as fast in the second round changes no ratio."""
    paces = ((JOB, 1.25, 0), (BARE, 1.0, 0), (BARE, 2.0, 1), (JOB, 2.5, 1))
    blocks = [Block(name, [seconds], 100, round=number) for name, seconds, number in paces]
    assert ratios(blocks, JOB) == pytest.approx([0.8, 0.8])
    assert "| job, checkpoints off | 2 | 60 (40 to 80) | 66.7% | 1.875 s | 0.800 (0.800 to 0.800) |" in table(blocks)


def test_every_block_is_printed_also_those_that_lose() -> None:
    page = table([Block(JOB, [1.0], 100), Block(BARE, [0.5], 100), Block(JOB_SAVING, [4.0], 100, checkpoints=3)])
    assert "| bare loop | 1 | 200 (200 to 200) | 0.0% | 0.500 s | 1.000 (1.000 to 1.000) |" in page
    assert "| job, checkpoints on | 1 | 25 (25 to 25) | 0.0% | 4.000 s | 0.125 (0.125 to 0.125) |" in page
    assert "| 3 | job, checkpoints on | 25 | 4.000 s | 4.000 s | 3 |" in page
