"""From token arrays to the summed loss of a micro-batch, and from there to one number for all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from trireme_trainer.engines.interface import MAX_VOTE, EngineConfigError, TokenBatch

LossFunction = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class LossTotals:
    """Cross entropy summed over tokens, and how many."""

    loss_sum: float
    tokens: int

    def __add__(self, other: LossTotals) -> LossTotals:
        return LossTotals(self.loss_sum + other.loss_sum, self.tokens + other.tokens)

    @property
    def mean(self) -> float:
        """Nats per token; nan when no token counts."""
        return self.loss_sum / self.tokens if self.tokens else float("nan")

    @classmethod
    def over_all_ranks(
        cls, parts: list[torch.Tensor], device: torch.device, vote: int = 0, number: float = 0.0
    ) -> tuple[LossTotals, int, float]:
        """Sum `[loss, tokens]` of every micro-batch, the largest vote (0 to MAX_VOTE) of any rank, and the mean of a
        number that each has.

        The last stage's first tensor rank speaks for its peers. One collective carries all: the ranks are counted
        by their vote.
        """
        total = torch.zeros(3 + MAX_VOTE + 1, dtype=torch.float64, device=device)
        total[2], total[3 + vote] = number, 1.0
        if parts and parallel_state.get_tensor_model_parallel_rank() == 0:
            total[:2] += torch.stack(parts).sum(dim=0)
        dist.all_reduce(total)
        loss_sum, tokens, numbers, *voters = total.tolist()
        agreed = max(value for value, count in enumerate(voters) if count)
        return cls(loss_sum, int(tokens)), agreed, numbers / sum(voters)


class MicroBatches:
    """The micro-batches of one rank's samples, as tensors on its device."""

    def __init__(self, batch: TokenBatch, micro_batch_size: int, device: torch.device) -> None:
        samples = len(batch.tokens)
        if batch.labels.shape != batch.tokens.shape or samples % micro_batch_size:
            raise EngineConfigError(
                f"tokens {batch.tokens.shape} and labels {batch.labels.shape} do not make micro-batches "
                f"of {micro_batch_size}"
            )
        self._size = micro_batch_size
        self._tokens = torch.as_tensor(batch.tokens, dtype=torch.int64).to(device, non_blocking=True)
        self._labels = torch.as_tensor(batch.labels, dtype=torch.int64).to(device, non_blocking=True)
        self._mask = (
            None
            if batch.loss_mask is None
            else torch.as_tensor(batch.loss_mask, dtype=torch.float32).to(device, non_blocking=True)
        )
        self._positions = torch.arange(batch.tokens.shape[1], device=device).expand(micro_batch_size, -1)

    def __len__(self) -> int:
        return len(self._tokens) // self._size

    def __iter__(self) -> Iterator[dict[str, torch.Tensor | None]]:
        for start in range(0, len(self._tokens), self._size):
            rows = slice(start, start + self._size)
            yield {
                "tokens": self._tokens[rows],
                "labels": self._labels[rows],
                "positions": self._positions,
                "mask": None if self._mask is None else self._mask[rows],
            }


def forward_step(micro_batches: Iterator[dict[str, Any]], model: torch.nn.Module) -> tuple[torch.Tensor, LossFunction]:
    """Megatron-core's forward-step function: output of this stage and how to reduce it if it is the last."""
    micro = next(micro_batches)
    output = model(micro["tokens"], micro["positions"], None, labels=micro["labels"])
    mask: torch.Tensor | None = micro["mask"]

    def reduce(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        losses = losses.float()
        if mask is None:
            total, tokens = losses.sum(), torch.tensor(losses.numel(), dtype=torch.int, device=losses.device)
        else:
            total, tokens = (losses * mask).sum(), mask.sum().to(torch.int)
        return total, tokens, torch.stack([total.detach().double(), tokens.double()])

    return output, reduce
