"""The trainer programs an agent can run; a new kind adds a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trireme.protocol import JobConfig, ModelRef
from trireme.resources.pretrain import START_FROM_JOB


@dataclass(frozen=True)
class StartingWeights:
    """Weights that ranks need; with a digest when they are another job's model."""

    field: str
    """Field of the spec that names them."""
    uri: str
    digest: str | None = None

    @property
    def folder(self) -> Path | None:
        """The folder that the URI means where it lies on this node and not in the store."""
        return None if self.uri.startswith("s3://") else Path(self.uri.removeprefix("file://"))


@dataclass(frozen=True)
class WeightsPlace:
    """Where a spec may name weights that ranks need: in the field `job` or in the field `uri`, both dotted."""

    name: str
    """By which the program's ranks ask for them."""
    job: str
    uri: str


def _model_at(field: str) -> WeightsPlace:
    """A field with either a job or a uri in it; ranks ask by the field's own name."""
    return WeightsPlace(field, f"{field}.job", f"{field}.uri")


@dataclass(frozen=True)
class Program:
    """The modules of one program, run with python -m."""

    ranks: str
    preparation: str
    places: Callable[[Mapping[str, Any]], tuple[WeightsPlace, ...]]
    """The places of a raw spec that may name weights."""
    always_from_weights: bool = False
    """Whether ranks need those weights also when they resume: their checkpoints hold only what is trained."""

    def weights(self, job: JobConfig) -> dict[str, StartingWeights]:
        """The weights that a job names, by the name of their place."""
        found = {}
        for place in self.places(job.spec):
            recorded: ModelRef | None = job.inputs.get(place.job)
            uri = _value_at(job.spec, place.uri)
            if recorded is not None:
                found[place.name] = StartingWeights(place.job, recorded.uri, recorded.digest)
            elif isinstance(uri, str):
                found[place.name] = StartingWeights(place.uri, uri)
        return found


def _value_at(spec: Any, field: str) -> Any:
    """What is in a field such as rewards[0].model.uri; None where it is left out."""
    for name in field.replace("[", ".").replace("]", "").split("."):
        if isinstance(spec, list):
            spec = spec[int(name)]
            continue
        spec = spec.get(name) if isinstance(spec, Mapping) else None
    return spec


def _rlhf_models(spec: Mapping[str, Any]) -> tuple[WeightsPlace, ...]:
    rewards = range(len(spec.get("rewards") or ()))
    return (_model_at("policy"), _model_at("reference"), *(_model_at(f"rewards[{n}].model") for n in rewards))


PRETRAIN_WEIGHTS = WeightsPlace("model", START_FROM_JOB, "model.startFrom")
PROGRAMS = {
    "pretrain": Program(
        ranks="trireme_trainer.pretrain",
        preparation="trireme_trainer.pretrain.prepare",
        places=lambda _: (PRETRAIN_WEIGHTS,),
    ),
    "finetune": Program(
        ranks="trireme_trainer.finetune",
        preparation="trireme_trainer.finetune.prepare",
        places=lambda _: (_model_at("base"),),
        always_from_weights=True,
    ),
    "rlhf": Program(
        ranks="trireme_trainer.rlhf",
        preparation="trireme_trainer.rlhf.prepare",
        places=_rlhf_models,
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
