from __future__ import annotations

import pytest
from engine_gang import Layout, TrainedRuns

from trireme_trainer.engines.interface import MAX_VOTE

LAYOUTS = [(2, 1, 1), (1, 2, 1), (2, 2, 1), (2, 1, 2), (1, 2, 2), (2, 2, 2)]


def test_one_rank_learns(trained: TrainedRuns) -> None:
    losses = [step["loss"] for step in trained.of((1, 1, 1))[0]["steps"]]
    assert losses[0] == pytest.approx(6.24, abs=0.2)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_losses_do_not_depend_on_the_layout(trained: TrainedRuns, layout: Layout) -> None:
    expected = trained.of((1, 1, 1))[0]["steps"]
    seen = trained.of(layout)
    assert len(seen[0]["steps"]) == TrainedRuns.steps
    for step, reference in zip(seen[0]["steps"], expected, strict=True):
        assert step["loss"] == pytest.approx(reference["loss"], abs=1e-4)
        # Rounding grows with the steps; at first the norms are equal to the last digits.
        assert step["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-5 if step["step"] <= 3 else 1e-2)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_rank_reports_the_same_step(trained: TrainedRuns, layout: Layout) -> None:
    first, *others = trained.of(layout)
    assert all(rank["steps"] == first["steps"] for rank in others)
    assert {rank["parameters"] for rank in (first, *others)} == {869504}
    assert {rank["agreed"] for rank in (first, *others)} == {len(others)}


def test_clipping_was_at_work(trained: TrainedRuns) -> None:
    assert max(step["grad_norm"] for step in trained.of((1, 1, 1))[0]["steps"]) > 0.5


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_all_ranks_learn_with_a_step_what_one_of_them_wishes(trained: TrainedRuns, layout: Layout) -> None:
    for rank in trained.of(layout):
        assert [step["agreed"] for step in rank["steps"]] == [n % (MAX_VOTE + 1) for n in range(len(rank["steps"]))]
