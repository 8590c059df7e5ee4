"""What the fine-tuning page claims follows from the blocks."""

from __future__ import annotations

import pytest
from benchmarks.finetune.blocks import JOB, PLAIN, Block, largest_difference, ratios, table


def block(contender: str, seconds: float, number: int, *losses: float, method: str = "lora") -> Block:
    return Block(contender, method, [seconds], 100, number, list(losses))


def test_a_job_is_compared_with_the_script_of_its_own_round_and_method() -> None:
    """A machine that is half as fast in the second round changes no ratio."""
    blocks = [block(JOB, 1.25, 0, 2.0), block(PLAIN, 1.0, 0, 2.0), block(PLAIN, 2.0, 1, 2.0), block(JOB, 2.5, 1, 2.0)]
    blocks += [block(PLAIN, 0.1, 0, 2.0, method="full"), block(JOB, 0.1, 0, 2.0, method="full")]
    assert ratios(blocks, "lora") == pytest.approx([0.8, 0.8])
    assert ratios(blocks, "full") == pytest.approx([1.0])
    assert "| lora | job | 2 | 60 (40 to 80) | 1.875 s | 0.800 (0.800 to 0.800) | 0.0e+00 |" in table(blocks)


def test_the_largest_difference_of_a_loss_is_over_all_steps_and_rounds() -> None:
    blocks = [block(JOB, 1, 0, 3.0, 2.0), block(PLAIN, 1, 0, 3.0, 2.5), block(JOB, 1, 1, 3.25, 2.0)]
    assert largest_difference(blocks, "lora") == pytest.approx(0.5)


def test_every_block_is_printed_also_those_that_lose() -> None:
    page = table([block(JOB, 4.0, 0, 2.0), block(PLAIN, 0.5, 0, 2.0)])
    assert "| 1 | lora | job | 25 | 4.000 s | 4.000 s |" in page
    assert "| 2 | lora | script | 200 | 0.500 s | 0.500 s |" in page
