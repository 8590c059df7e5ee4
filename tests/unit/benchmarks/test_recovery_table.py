"""What the recovery page claims follows from the recoveries."""

from __future__ import annotations

import pytest
from benchmarks.recovery.table import NODE, RANK, TORCHRUN, TRIREME, Recovery, table


def recovery(contender: str, fault: str, detect: float, steps_again: int = 4) -> Recovery:
    at = 1000.0 + detect
    return Recovery(contender, fault, 1000.0, at, at + 2, at + 3, at + 7, fault_step=10, resume_step=10 - steps_again)


def test_the_parts_share_out_the_whole_time() -> None:
    one = recovery(TRIREME, RANK, 0.5)
    assert one.parts == pytest.approx((0.5, 2.0, 1.0, 4.0))
    assert sum(one.parts) == pytest.approx(one.total)


def test_runs_of_one_fault_and_contender_make_a_row_with_median_and_range() -> None:
    page = table([recovery(TRIREME, RANK, detect) for detect in (0.5, 3.0, 1.0)])
    assert "| rank | trireme | 3 | 8.0 (7.5 to 10.0) | 1.0 (0.5 to 3.0) | 2.0 (2.0 to 2.0)" in page


def test_a_node_that_a_person_replaced_is_marked_so() -> None:
    page = table([recovery(TORCHRUN, NODE, 0.1), recovery(TORCHRUN, RANK, 0.1)])
    assert "| node | torchrun (by hand) | 1 |" in page
    assert "| rank | torchrun | 1 |" in page


def test_every_run_is_listed() -> None:
    page = table([recovery(TORCHRUN, RANK, 0.1, steps_again=3), recovery(TRIREME, RANK, 0.2)])
    assert "| torchrun | rank | 7.10 | 0.10 | 2.00 | 1.00 | 4.00 | 3 | 1 |" in page
    assert "| trireme | rank | 7.20 | 0.20 | 2.00 | 1.00 | 4.00 | 4 | 1 |" in page
