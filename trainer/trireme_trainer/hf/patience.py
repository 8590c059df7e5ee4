"""Early stopping: how long a run goes on without a better validation, and the best weights so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

BEST = "best"
"""Part of a checkpoint's tensors: the weights of the best validation, where they are not the checkpoint's own."""


class Patience:
    """A run stops after some validations in a row without a new best. Prechelt 1998 (Early Stopping - But When?)."""

    def __init__(self, validations: int, least_improvement: float) -> None:
        """`least_improvement`: in nats, that a loss must be below the best one to be better."""
        self._validations, self._least = validations, least_improvement
        self.loss: float | None = None
        self.step = 0
        self.since = 0
        """Validations since the best."""
        self.weights: dict[str, torch.Tensor] = {}
        """Of the best, on rank 0."""

    @property
    def exhausted(self) -> bool:
        """Whether the run is to stop."""
        return self.since >= self._validations

    def see(self, loss: float, step: int) -> bool:
        """Take note of a validation; whether it is the best."""
        better = self.loss is None or loss < self.loss - self._least
        if better:
            self.loss, self.step, self.since = loss, step, 0
        else:
            self.since += 1
        return better

    def keep(self, weights: Iterable[tuple[str, torch.Tensor]], rank: int) -> None:
        """Copy the weights of the best validation, on rank 0. To read them may be collective."""
        self.weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights if rank == 0}

    def state(self) -> dict[str, Any]:
        """For a checkpoint's JSON."""
        return {"loss": self.loss, "step": self.step, "since": self.since}

    def restore(self, state: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
        """Go on from a checkpoint's state."""
        self.loss, self.step, self.since = state["loss"], state["step"], state["since"]
        self.weights = dict(weights)

    def tensors(self, step: int) -> dict[str, torch.Tensor]:
        """What rank 0 adds to a checkpoint of that step."""
        return {} if self.step == step else {f"{BEST}/{name}": tensor for name, tensor in self.weights.items()}

    @property
    def metrics(self) -> dict[str, float]:
        """What is shown of it."""
        return {} if self.loss is None else {"best/loss": self.loss, "best/step": float(self.step)}
