"""One line for every step that a job completed: what curves and rates are drawn from."""

from collections.abc import Iterable
from datetime import datetime

from pydantic import Field

from trireme.protocol.base import WireModel


class StepRecord(WireModel):
    """A completed optimizer step of one attempt. A step that was computed again has a record in each attempt."""

    step: int = Field(description="Completed steps after this one.")
    attempt: int
    loss: float | None = Field(default=None, description="Mean cross entropy in nats per token.")
    learning_rate: float | None = None
    grad_norm: float | None = Field(default=None, description="Global L2 norm before clipping.")
    seconds: float = Field(description="Duration of the step on rank 0.")
    tokens: int = Field(description="Tokens consumed up to `step`.")
    completed_at: datetime = Field(description="When rank 0 completed it, by its own clock.")


def parse_history(data: bytes) -> list[StepRecord]:
    """The records of one stored object. Raises pydantic.ValidationError."""
    return [StepRecord.model_validate_json(line) for line in data.splitlines() if line]


def newest_attempt_wins(records: Iterable[StepRecord]) -> list[StepRecord]:
    """One record per step, in the order of steps: the run as if nothing had been computed twice."""
    latest: dict[int, StepRecord] = {}
    for record in sorted(records, key=lambda r: r.attempt):
        latest[record.step] = record
    return [latest[step] for step in sorted(latest)]
