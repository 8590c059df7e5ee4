"""What DPO and reward models share: rows of two answers, and how often the better one wins on held-out rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from trireme_trainer.hf.counters import Evaluation
from trireme_trainer.hf.data import ExampleDataset
from trireme_trainer.hf.evaluation import evaluating, held_out_batches
from trireme_trainer.hf.run import HFRun
from trireme_trainer.rlhf.config import RLHFConfig
from trireme_trainer.rlhf.data import ComparisonDataset


class ComparingRun(HFRun):
    """One rank's run."""

    config: RLHFConfig
    evaluates_at_start = True

    def make_dataset(self, directory: Path) -> ExampleDataset:
        """Comparisons."""
        return ComparisonDataset(directory, self.config.spec.training.seed, self.config.examples_per_step)

    def scores(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Of a batch `[2 * pairs, seq]`, the chosen before the rejected: `margin` [pairs], by whose sigmoid the loss
        judges, and other numbers of each pair [pairs] that are shown as their means. Collective.
        """
        raise NotImplementedError

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """-log sigmoid of the margin (Bradley and Terry 1952), and how often the margin is above 0."""
        trainer: Any = self.trainer
        rows = self.data.validation
        sums: dict[str, float] = {"pairs": 0.0, "loss": 0.0, "accuracy": 0.0}
        with evaluating(trainer.model_wrapped):
            for mine, counts in held_out_batches(rows, self.config.plan.micro_batch_size, self.place):
                batch = trainer.data_collator([rows.dataset[number] for number in mine])
                with trainer.compute_loss_context_manager():
                    found = self.scores({name: value.to(self.ranks.device) for name, value in batch.items()})
                margin = found["margin"].double()
                numbers = {
                    "pairs": torch.ones_like(margin),
                    "loss": -logsigmoid(margin),
                    # Of two that are equal, as all are before DPO's first step, either may win.
                    "accuracy": (margin > 0).double() + 0.5 * (margin == 0).double(),
                    **found,
                }
                for name, values in numbers.items():
                    sums[name] = sums.get(name, 0.0) + (float(values.double().sum()) if counts else 0.0)
                self.channel.alive()
        names = sorted(sums)
        totals = dict(zip(names, self.ranks.total(*(sums[name] for name in names)), strict=True))
        pairs = max(1.0, totals.pop("pairs"))
        means = {name: total / pairs for name, total in totals.items()}
        return Evaluation(means.pop("loss"), means)
