"""References from one job to another: its exported model is what the job works on."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from trireme.resources.base import ObjectName, Strict

ModelKind = Literal["PretrainJob", "FineTuneJob", "RLHFJob"]
"""Kinds whose jobs export a model."""


class JobReference(Strict):
    """A job of the same namespace whose exported model is taken; the referring job waits until it is there."""

    kind: ModelKind = Field(default="PretrainJob", description="Kind of the job.")
    name: ObjectName = Field(description="Name of the job.")

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


References = Mapping[str, JobReference]
"""The jobs that a spec names, by the dotted path of the field that names each, from the spec."""


def no_references(_: Any) -> References:
    """Of a kind that works on no other job's model."""
    return {}
