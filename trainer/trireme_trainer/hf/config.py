"""From the spec and plan of a job that trains a Hugging Face model to what preparation and ranks are told."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Literal, Protocol, TypeVar

from trireme.checkpoints import Manifest, digest_bytes
from trireme.planning.data_parallel import DataParallelPlan
from trireme.protocol import JobConfig
from trireme.resources.common import Checkpoint
from trireme.resources.tuning import ExampleSource, Method, Output, TuningTraining
from trireme_trainer.agent.programs import StartingWeights, find_program
from trireme_trainer.data.example_files import ExampleSourceConfig
from trireme_trainer.data.sources import SourceConfig
from trireme_trainer.hf.models import CAUSAL, Head

_FREE = frozenset(
    {"steps", "epochs", "microBatchSize", "recompute", "zeroStage", "validationIntervalSteps", "earlyStopping"}
)
"""How the work is cut up and watched, and how long it goes on: a resumed run may differ in these."""


class HFSpec(Protocol):
    """What the spec of every such kind has."""

    @property
    def method(self) -> Method: ...
    @property
    def training(self) -> TuningTraining: ...
    @property
    def output(self) -> Output: ...
    @property
    def checkpoint(self) -> Checkpoint: ...


SpecT = TypeVar("SpecT", bound=HFSpec)


@dataclass(frozen=True)
class HFConfig(Generic[SpecT]):
    """A job, parsed."""

    job: JobConfig
    spec: SpecT
    plan: DataParallelPlan

    base_name = "base"
    """Of the place in the spec that names the model to train."""

    @cached_property
    def weights(self) -> dict[str, StartingWeights]:
        """The models that the job names, by the name of their place."""
        return find_program(self.job.program).weights(self.job)

    @property
    def base(self) -> StartingWeights:
        """The model to train; the operator starts no pod before it is recorded."""
        return self.weights[self.base_name]

    @property
    def head(self) -> Head:
        """What stands on the body of the model that is trained."""
        return CAUSAL

    @property
    def sequence_length(self) -> int:
        """Tokens of the longest row."""
        raise NotImplementedError

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """What ranks compute on, in torch's words."""
        return "cpu" if self.plan.accelerator == "cpu" else "cuda"

    @property
    def adapter(self) -> bool:
        """Whether only an adapter is trained."""
        return self.spec.method.type != "full"

    @property
    def model_digest(self) -> str:
        """Of what a checkpoint's tensors belong to: the models that are named and the method."""
        method = self.spec.method.to_manifest()
        models = {name: {"uri": w.uri, "digest": w.digest} for name, w in self.weights.items()}
        return digest_bytes(json.dumps({"models": models, "method": method}, sort_keys=True).encode())

    @property
    def record(self) -> dict[str, Any]:
        """The settings that every step depends on, kept in each manifest."""
        training = {k: v for k, v in self.spec.training.to_manifest().items() if k not in _FREE}
        return {"training": training, "sequenceLength": self.sequence_length}

    @property
    def examples_per_step(self) -> int:
        """Training rows that a step uses up."""
        return self.spec.training.global_batch_size

    def total_steps(self, examples: int) -> int:
        """Optimizer steps of the whole run, with so many training examples."""
        training = self.spec.training
        if training.steps is not None:
            return training.steps
        return max(1, math.ceil((training.epochs or 1.0) * examples / self.examples_per_step))

    def differences(self, manifest: Manifest, examples: int | None = None) -> str | None:
        """Why training cannot go on from a checkpoint, with fields and values; None when it can.

        `examples`: how many there are to train on, once that is known.
        """
        stored = manifest.state.get("training")
        here, there = _flat(self.record), _flat(stored) if isinstance(stored, Mapping) else {}
        found = [f"{k} is {v} there, {here[k]} here" for k, v in there.items() if k in here and here[k] != v]
        if examples is not None:
            step, total = manifest.step, self.total_steps(examples)
            # A run that is applied again as it was has nothing left to do, and ends as it did.
            if step >= total and not step == total == manifest.state.get("totalSteps", total):
                found.append(f"it is of step {step}, this job's run has {total} steps")
        return "; ".join(found) or None


def source_config(source: ExampleSource) -> ExampleSourceConfig:
    """One origin of examples as data preparation is told of it."""
    files = SourceConfig(
        uri=source.uri, weight=source.weight, include=tuple(source.include), exclude=tuple(source.exclude)
    )
    return ExampleSourceConfig(files, dict(source.columns))


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return flat
