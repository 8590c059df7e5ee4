"""Loss and accuracy on held-out examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from trireme_trainer.data.examples import IGNORED
from trireme_trainer.hf.data import Rows
from trireme_trainer.hf.evaluation import evaluating, held_out_batches
from trireme_trainer.hf.ranks import GroupRanks
from trireme_trainer.rank.run import Place


class HeldOut:
    """The held-out rows, shared out over all ranks."""

    def __init__(
        self, trainer: Any, rows: Rows, batch_size: int, ranks: GroupRanks, place: Place, alive: Callable[[], None]
    ) -> None:
        self._trainer, self._rows, self._batch_size = trainer, rows, batch_size
        self._ranks, self._place, self._alive = ranks, place, alive

    def mean_loss(self) -> float:
        """Mean cross entropy in nats over all tokens that count."""
        total = count = 0.0
        for logits, labels, counts in self._answers():
            # Virtual tokens stand before the others, and have no labels.
            logits = logits[:, logits.shape[1] - labels.shape[1] :]
            losses = cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
            )
            if counts:
                total += float(losses)
                count += float((labels[:, 1:] != IGNORED).sum())
        total, count = self._ranks.total(total, count)
        return total / max(1.0, count)

    def classified(self) -> tuple[float, float]:
        """(mean cross entropy in nats, share of right answers, 0 to 1) of a classifier."""
        total = right = count = 0.0
        for logits, labels, counts in self._answers():
            if counts:
                total += float(cross_entropy(logits.float(), labels, reduction="sum"))
                right += float((logits.argmax(-1) == labels).sum())
                count += len(labels)
        total, right, count = self._ranks.total(total, right, count)
        return total / max(1.0, count), right / max(1.0, count)

    @torch.no_grad()
    def _answers(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, bool]]:
        """(logits, labels, whether they count) of one batch after another."""
        model = self._trainer.model_wrapped
        with evaluating(model):
            for numbers, counts in held_out_batches(self._rows, self._batch_size, self._place):
                chosen = [self._rows.dataset[number] for number in numbers]
                batch = {k: v.to(self._ranks.device) for k, v in self._trainer.data_collator(chosen).items()}
                labels = batch.pop("labels")
                with self._trainer.compute_loss_context_manager():
                    logits = model(**batch, use_cache=False).logits
                yield logits, labels, counts
                self._alive()
