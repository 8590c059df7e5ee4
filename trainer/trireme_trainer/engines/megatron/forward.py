"""From token arrays to the summed loss of a micro-batch, and from there to one number for all ranks."""

from __future__ import annotations

import math
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
    def over_all_ranks(cls, parts: list[torch.Tensor], device: torch.device) -> LossTotals:
        """Sum `[loss, tokens]` of every micro-batch of every rank."""
        total = _own_totals(parts, device)
        dist.all_reduce(total)
        loss_sum, tokens = total.tolist()
        return cls(loss_sum, int(tokens))


@dataclass(frozen=True)
class StepTotals:
    """What all ranks must know of a step before its weights change."""

    loss: LossTotals
    grad_norm: float
    vote: int
    """The largest of any rank."""
    mean_busy: float
    """Mean over the ranks of what each gave, in seconds."""

    @classmethod
    def over_all_ranks(
        cls, parts: list[torch.Tensor], grad_square: torch.Tensor, vote: int, busy: float = 0.0
    ) -> StepTotals:
        """Sum the losses of every micro-batch and the squared norms of the ranks' own gradients.

        One collective and one wait for the device carry everything, since each further one would make the stages of
        the pipeline wait for one another again. `vote` is 0 to MAX_VOTE; the ranks are counted by their vote. `busy`:
        for how long this rank worked in an earlier step, in seconds.
        """
        own = torch.zeros(MAX_VOTE + 2, dtype=torch.float64, device=grad_square.device)
        own[0], own[1 + vote] = busy, 1.0  # filled in on the device: a copy to it would be waited for
        total = torch.cat([_own_totals(parts, grad_square.device), grad_square.double().reshape(1), own])
        dist.all_reduce(total)
        loss_sum, tokens, square, busy_sum, *voters = total.tolist()
        largest = max(value for value, count in enumerate(voters) if count)
        return cls(LossTotals(loss_sum, int(tokens)), math.sqrt(square), largest, busy_sum / sum(voters))


def _own_totals(parts: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """`[loss, tokens]` of this rank; the last stage's first tensor rank speaks for its peers."""
    if parts and parallel_state.get_tensor_model_parallel_rank() == 0:
        return torch.stack(parts).sum(dim=0)
    return torch.zeros(2, dtype=torch.float64, device=device)


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
