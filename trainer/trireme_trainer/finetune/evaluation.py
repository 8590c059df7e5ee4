"""Loss on held-out examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from trireme_trainer.data.examples import IGNORED
from trireme_trainer.hf.data import Rows
from trireme_trainer.hf.ranks import GroupRanks
from trireme_trainer.rank.run import Place


@torch.no_grad()
def mean_loss(
    trainer: Any, rows: Rows, batch_size: int, ranks: GroupRanks, place: Place, alive: Callable[[], None]
) -> float:
    """Mean cross entropy in nats over all tokens that count, of all ranks.

    Every rank runs the model as often as the others (its weights may be shared out); a rank without rows of its own
    left runs one again and does not count it.
    """
    model = trainer.model_wrapped
    was_training = model.training
    model.eval()
    total = count = 0.0
    stride = batch_size * place.world_size
    for begin in range(0, len(rows), stride):
        mine = range(begin + place.rank * batch_size, min(begin + (place.rank + 1) * batch_size, len(rows)))
        chosen = [rows.dataset[number] for number in (mine or [0])]
        batch = {k: v.to(ranks.device) for k, v in trainer.data_collator(chosen).items()}
        labels = batch.pop("labels")
        with trainer.compute_loss_context_manager():
            logits = model(**batch, use_cache=False).logits
        # Virtual tokens stand before the others, and have no labels.
        logits = logits[:, logits.shape[1] - labels.shape[1] :]
        losses = cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        if mine:
            total += float(losses)
            count += float((labels[:, 1:] != IGNORED).sum())
        alive()
    model.train(was_training)
    total, count = ranks.total(total, count)
    return total / max(1.0, count)
