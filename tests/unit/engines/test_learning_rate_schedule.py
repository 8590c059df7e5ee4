from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trireme_trainer.engines.interface import ScheduleConfig
from trireme_trainer.engines.megatron.schedule import learning_rate


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    schedule = ScheduleConfig(total_steps=100, warmup_steps=4)
    assert [learning_rate(schedule, 1.0, done) for done in range(4)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(("kind", "middle"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)])
def test_half_way_through_the_decay(kind: str, middle: float) -> None:
    schedule = ScheduleConfig(total_steps=110, warmup_steps=10, kind=kind, min_learning_rate=0.1)  # type: ignore[arg-type]
    assert learning_rate(schedule, 1.0, 59) == pytest.approx(middle)


@given(st.integers(1, 1000), st.integers(0, 1000), st.sampled_from(["cosine", "linear"]), st.integers(0, 3000))
def test_the_rate_stays_in_bounds_and_ends_at_the_minimum(total: int, warmup: int, kind: str, done: int) -> None:
    schedule = ScheduleConfig(total, kind, min(warmup, total - 1), 0.01)  # type: ignore[arg-type]
    assert 0.0 < learning_rate(schedule, 1.0, done) <= 1.0
    assert learning_rate(schedule, 1.0, total - 1 + done) == pytest.approx(0.01)
