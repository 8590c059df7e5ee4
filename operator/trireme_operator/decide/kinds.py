"""Admission by kind: everything that is a kind's own comes from its JobKind, so nothing here asks which kind it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trireme.planning import PlanError
from trireme.resources import JobKind, SpecError
from trireme.resources.common import MAX_JOB_NAME_LENGTH, TrainingJobSpec
from trireme.resources.kinds import Choice

Kind = JobKind[Any]


class UnreadableSpec(ValueError):
    """An accepted job's spec and what was resolved of it are both not valid for this version."""


@dataclass(frozen=True)
class Admitted:
    """A spec that is valid and fits."""

    spec: TrainingJobSpec
    plan: Mapping[str, Any]
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True)
class Refused:
    """A spec that cannot work, with the field and the numbers."""

    reason: str
    message: str


def admit(kind: Kind, name: str, raw: Mapping[str, Any]) -> Admitted | Refused:
    """Validate a raw spec and plan it."""
    if len(name) > MAX_JOB_NAME_LENGTH:
        return Refused(
            "NameTooLong", f"metadata.name: {len(name)} characters, at most {MAX_JOB_NAME_LENGTH} are allowed"
        )
    try:
        spec = kind.parse(raw)
        for field, job in kind.references(spec).items():
            if (job.kind, job.name) == (kind.kind, name):
                raise SpecError(field, f"{job} is this job itself")
        spec, choices = kind.settle(spec)
        plan = kind.make_plan(spec)
    except SpecError as error:
        return Refused("InvalidSpec", f"spec.{error.field}: {error.message}" if error.field else error.message)
    except PlanError as error:
        return Refused(error.reason, f"spec.{error.field}: {error.message}")
    planned = plan.model_dump(mode="json", by_alias=True, exclude_none=True)
    return Admitted(spec=spec, plan=planned, choices=choices)


def parse(kind: Kind, raw: Mapping[str, Any]) -> TrainingJobSpec | None:
    """A stored spec as its model, without fields that a newer version brought, or None when it is not valid."""
    try:
        spec: TrainingJobSpec = kind.parse_stored(raw)
    except SpecError:
        return None
    return spec
