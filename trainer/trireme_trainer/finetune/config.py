"""From the job's spec and plan to what preparation and ranks are told."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trireme.checkpoints import Manifest, digest_bytes
from trireme.planning.data_parallel import DataParallelPlan
from trireme.protocol import JobConfig
from trireme.resources.finetune import ExampleSource, FineTuneSpec
from trireme_trainer.agent.programs import StartingWeights, find_program
from trireme_trainer.data.example_files import ExamplesConfig, ExampleSourceConfig
from trireme_trainer.data.sources import SourceConfig

_FREE = frozenset({"steps", "epochs", "microBatchSize", "recompute", "zeroStage", "validationIntervalSteps"})
"""How the work is cut up and watched, and how long it goes on: a resumed run may differ in these."""


@dataclass(frozen=True)
class FineTuneConfig:
    """A fine-tuning job, parsed."""

    job: JobConfig
    spec: FineTuneSpec
    plan: DataParallelPlan

    @classmethod
    def parse(cls, job: JobConfig) -> FineTuneConfig:
        """Raises pydantic.ValidationError when spec or plan are not of this version."""
        return cls(job, FineTuneSpec.model_validate(job.spec), DataParallelPlan.model_validate(job.plan))

    @property
    def base(self) -> StartingWeights:
        """The model to teach."""
        found = find_program(self.job.program).starting_weights(self.job)
        assert found is not None, "the operator starts no pod before the base is recorded"
        return found

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
        """Of what a checkpoint's tensors belong to: the base model and the method."""
        method = self.spec.method.to_manifest()
        base = {"uri": self.base.uri, "digest": self.base.digest}
        return digest_bytes(json.dumps({"base": base, "method": method}, sort_keys=True).encode())

    @property
    def record(self) -> dict[str, Any]:
        """The settings that every step depends on, kept in each manifest."""
        training = {k: v for k, v in self.spec.training.to_manifest().items() if k not in _FREE}
        return {"training": training, "sequenceLength": self.spec.data.sequence_length}

    def total_steps(self, examples: int) -> int:
        """Optimizer steps of the whole run, with so many training examples."""
        training = self.spec.training
        if training.steps is not None:
            return training.steps
        return max(1, math.ceil((training.epochs or 1.0) * examples / training.global_batch_size))

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

    @property
    def examples(self) -> ExamplesConfig:
        """What data preparation is told."""
        data = self.spec.data
        validation = data.validation
        return ExamplesConfig(
            task=self.spec.task,
            sources=tuple(map(_source, data.sources)),
            sequence_length=data.sequence_length,
            overlong=data.overlong,
            validation_fraction=validation.fraction if validation else None,
            validation_sources=tuple(map(_source, (validation.sources if validation else None) or ())),
        )


def _source(source: ExampleSource) -> ExampleSourceConfig:
    files = SourceConfig(
        uri=source.uri, weight=source.weight, include=tuple(source.include), exclude=tuple(source.exclude)
    )
    return ExampleSourceConfig(files, dict(source.columns))


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return flat
