"""What a run has counted and measured so far; a checkpoint keeps it beside weights and optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STATE = {
    "tokens": "tokens",
    "firstLoss": "first_loss",
    "lastLoss": "last_loss",
    "validationLoss": "validation_loss",
    "validationStep": "validation_step",
    "validationMetrics": "validation_metrics",
    "startMetrics": "start_metrics",
}
"""Names in a checkpoint, and here."""


@dataclass
class Counters:
    """What a checkpoint keeps beside weights and optimizer."""

    tokens: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    validation_loss: float | None = None
    validation_step: int | None = None
    """After which step that loss was measured."""
    validation_metrics: dict[str, float] = field(default_factory=dict)
    start_metrics: dict[str, float] = field(default_factory=dict)
    """Of the held-out rows before the first step."""

    @property
    def metrics(self) -> dict[str, float]:
        """What is shown beside the loss."""
        return {**self.start_metrics, **self.validation_metrics}

    def state(self) -> dict[str, Any]:
        """As a checkpoint has it."""
        return {name: getattr(self, field) for name, field in STATE.items()}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Counters:
        """From what a checkpoint has, which may be of a version that measured less."""
        return cls(**{field: state[name] for name, field in STATE.items() if state.get(name) is not None})


@dataclass(frozen=True)
class Evaluation:
    """Of the model on held-out rows."""

    loss: float | None
    """Where the algorithm has one there."""
    metrics: dict[str, float] = field(default_factory=dict)
