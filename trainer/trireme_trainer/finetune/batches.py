"""From rows to batches, where the libraries' own collators do not do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from trireme_trainer.data.examples import IGNORED


@dataclass(frozen=True)
class PackedRows:
    """Batches of rows of several examples: input_ids, labels and position_ids, all [rows, longest row].

    Positions begin anew with each example, and there is no attention mask: from the positions the library makes a
    block-diagonal one for its SDPA and eager attention, so that no example sees another; it does so only where the
    model keeps no cache of keys and values (use_cache=False, as the trainer asks for). trl's own collator makes one
    row of the whole batch, which only variable-length kernels compute without waste. Each padding token has position
    0, and so is an example of its own. The first token of an example follows from nothing and does not count.
    """

    pad_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        positions = [torch.cat([torch.arange(length) for length in row["seq_lengths"]]) for row in rows]
        batch = {
            "input_ids": pad_sequence([torch.tensor(r["input_ids"]) for r in rows], True, self.pad_token_id),
            "labels": pad_sequence([torch.tensor(r["labels"]) for r in rows], True, IGNORED),
            "position_ids": pad_sequence(positions, True, 0),
        }
        batch["labels"][batch["position_ids"] == 0] = IGNORED
        return batch
