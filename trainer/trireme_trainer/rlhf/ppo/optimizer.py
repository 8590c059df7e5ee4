"""Gradients of all ranks to a step of AdamW: plainly, or with what DeepSpeed's ZeRO shares out."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from trireme.resources.tuning import TuningOptimizer
from trireme_trainer.hf.ranks import zero_config


class Updates(Protocol):
    """Takes the losses of an update's micro-batches, then steps. A loss is this rank's part of a sum over all ranks."""

    optimizer: Any

    def backward(self, loss: torch.Tensor) -> None: ...

    def step(self, learning_rate: float) -> float:
        """Norm of the whole gradient before clipping. Collective."""


def adamw(model: nn.Module, how: TuningOptimizer, learning_rate: float) -> torch.optim.AdamW:
    """Over what is trained of a model; weight decay on matrices only."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": how.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(how.beta1, how.beta2), eps=how.eps)


class PlainUpdates:
    """Every rank has all weights and the optimizer's whole state."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, clip: float) -> None:
        """`clip`: ceiling of the gradient norm; 0 for none."""
        self.optimizer: Any = optimizer
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._clip = clip
        self._alone = not dist.is_initialized() or dist.get_world_size() == 1

    def backward(self, loss: torch.Tensor) -> None:
        """Add to the gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float) -> float:
        """Sum the ranks' gradients, clip, step. Collective."""
        for parameter in self._trained:
            if parameter.grad is None:  # the ranks must agree on what they sum
                parameter.grad = torch.zeros_like(parameter)
            if not self._alone:
                dist.all_reduce(parameter.grad)
        norm = float(nn.utils.clip_grad_norm_(self._trained, self._clip or float("inf")))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm


class ZeroUpdates:
    """Ranks share out the optimizer's state, and at stage 2 the gradients (Rajbhandari et al. 2020)."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        stage: int,
        micro: int,
        accumulation: int,
        world_size: int,
        clip: float,
    ) -> None:
        """Weights are kept whole and in float32 on every rank; computation may be in bfloat16 by autocast."""
        import deepspeed

        config = zero_config(
            stage, micro=micro, accumulation=accumulation, world_size=world_size, clip=clip, bf16=False
        )
        self._engine, self.optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        # The library averages over ranks and micro-batches; losses here are parts of a sum.
        self._parts = float(world_size * accumulation)

    def backward(self, loss: torch.Tensor) -> None:
        """Add to the gradients."""
        self._engine.backward(loss * self._parts)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # counts the micro-batch, and changes nothing before an update's last

    def step(self, learning_rate: float) -> float:
        """Step. Collective."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        return float(self._engine.get_global_grad_norm() or 0.0)
