"""How ranks share out held-out rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trireme_trainer.hf.data import Rows
from trireme_trainer.rank.run import Place


def held_out_batches(rows: Rows, batch_size: int, place: Place) -> Iterator[tuple[list[int], bool]]:
    """(rows of this rank, whether they count) as often as every rank has to run the model.

    Its weights may be shared out, so that no rank may run it less often than the others: a rank without rows of its own
    left runs one again.
    """
    for begin in range(0, len(rows), batch_size * place.world_size):
        first = begin + place.rank * batch_size
        mine = list(range(first, min(first + batch_size, len(rows))))
        yield (mine, True) if mine else ([0], False)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model without dropout."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
