"""When a run stops early, and which weights it keeps."""

from __future__ import annotations

import pytest
import torch

from trireme_trainer.hf.patience import BEST, Patience


@pytest.mark.parametrize(
    ("validations", "least", "losses", "stops_after", "best"),
    [
        (2, 0.0, [3.0, 2.0, 2.5, 2.5], 4, 2),
        (2, 0.0, [3.0, 2.0, 2.5, 1.9, 1.9, 1.9], 6, 4),
        (1, 0.0, [3.0, 3.0], 2, 1),
        (2, 0.5, [3.0, 2.8, 2.6], 3, 1),
        (2, 0.5, [3.0, 2.8, 2.4, 2.4, 2.4], 5, 3),
    ],
    ids=["two worse ones", "a new best begins anew", "equal is not better", "too little better", "enough better"],
)
def test_a_run_stops_after_so_many_validations_without_a_better_loss(
    validations: int, least: float, losses: list[float], stops_after: int, best: int
) -> None:
    patience = Patience(validations, least)
    exhausted = []
    for step, loss in enumerate(losses, 1):
        patience.see(loss, step)
        exhausted.append(patience.exhausted)
    assert exhausted.index(True) + 1 == stops_after == len(losses)
    assert (patience.step, patience.loss) == (best, losses[best - 1])


def test_a_resumed_run_stops_where_the_first_would_have() -> None:
    first, second = Patience(2, 0.0), Patience(2, 0.0)
    weight = torch.ones(2)
    assert first.see(2.0, 10)
    first.keep([("w", weight)], rank=0)
    weight += 1  # training goes on
    assert not first.see(3.0, 20)
    kept = first.tensors(20)
    assert {name: tensor.tolist() for name, tensor in kept.items()} == {f"{BEST}/w": [1.0, 1.0]}
    assert first.tensors(10) == {}, "the checkpoint's own weights are the best ones"
    second.restore(first.state(), {"w": kept[f"{BEST}/w"]})
    assert not second.see(2.5, 30)
    assert second.exhausted
    assert second.weights["w"].tolist() == [1.0, 1.0]


def test_only_rank_0_keeps_weights_and_all_ranks_read_them() -> None:
    """To read them may be collective."""
    read = []

    def weights() -> object:
        for name in ("a", "b"):
            read.append(name)
            yield name, torch.zeros(1)

    patience = Patience(1, 0.0)
    patience.keep(weights(), rank=1)  # type: ignore[arg-type]
    assert (read, patience.weights) == (["a", "b"], {})
