"""The trainer programs an agent can run; a new kind adds a line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trireme.protocol import JobConfig, ModelRef
from trireme.resources.finetune import BASE_JOB
from trireme.resources.pretrain import START_FROM_JOB


@dataclass(frozen=True)
class StartingWeights:
    """Weights that training starts from; with a digest when they are another job's model."""

    field: str
    """Field of the spec that names them."""
    uri: str
    digest: str | None = None

    @property
    def folder(self) -> Path | None:
        """The folder that the URI means where it lies on this node and not in the store."""
        return None if self.uri.startswith("s3://") else Path(self.uri.removeprefix("file://"))


@dataclass(frozen=True)
class Program:
    """The modules of one program, run with python -m."""

    ranks: str
    preparation: str
    start_from: str = ""
    """Field of the spec, dotted, with the URI of a checkpoint or model whose weights training starts from."""
    start_from_job: str = ""
    """Field of the spec that names a job instead, whose model the operator has recorded."""
    always_from_weights: bool = False
    """Whether ranks need those weights also when they resume: their checkpoints hold only what is trained."""

    def starting_weights(self, job: JobConfig) -> StartingWeights | None:
        """The weights that a job starts from, if any."""
        recorded: ModelRef | None = job.inputs.get(self.start_from_job)
        if recorded is not None:
            return StartingWeights(self.start_from_job, recorded.uri, recorded.digest)
        place: Any = job.spec
        for name in self.start_from.split("."):
            place = place.get(name) if isinstance(place, dict) else None
        return StartingWeights(self.start_from, place) if isinstance(place, str) else None


PROGRAMS = {
    "pretrain": Program(
        ranks="trireme_trainer.pretrain",
        preparation="trireme_trainer.pretrain.prepare",
        start_from="model.startFrom",
        start_from_job=START_FROM_JOB,
    ),
    "finetune": Program(
        ranks="trireme_trainer.finetune",
        preparation="trireme_trainer.finetune.prepare",
        start_from="base.uri",
        start_from_job=BASE_JOB,
        always_from_weights=True,
    ),
}


class UnknownProgram(ValueError):
    """This trainer has no such program."""


def find_program(name: str) -> Program:
    """The program of that name. Raises UnknownProgram."""
    try:
        return PROGRAMS[name]
    except KeyError:
        raise UnknownProgram(f"program {name!r} is not in this trainer: {', '.join(PROGRAMS)}") from None
