"""From the spec and plan of a fine-tuning job to what preparation and ranks are told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from trireme.planning.data_parallel import DataParallelPlan
from trireme.protocol import JobConfig
from trireme.resources.finetune import FineTuneSpec
from trireme_trainer.data.dataset import INDEX_NAME, DatasetIndex
from trireme_trainer.data.example_files import ExamplesConfig
from trireme_trainer.hf.config import HFConfig, source_config
from trireme_trainer.hf.models import CAUSAL, Head


@dataclass(frozen=True)
class FineTuneConfig(HFConfig[FineTuneSpec]):
    """A fine-tuning job, parsed."""

    classes: tuple[str, ...] = ()
    """Of task classification: those of the manifest, or of the prepared data set."""

    @classmethod
    def parse(cls, job: JobConfig) -> FineTuneConfig:
        """Raises pydantic.ValidationError when spec or plan are not of this version."""
        spec = FineTuneSpec.model_validate(job.spec)
        return cls(job, spec, DataParallelPlan.model_validate(job.plan), tuple(spec.data.labels))

    def with_data(self, dataset: Path) -> FineTuneConfig:
        """The same with the classes that the prepared data set has."""
        index = DatasetIndex.model_validate_json((dataset / INDEX_NAME).read_bytes())
        return replace(self, classes=tuple(index.classes or ()))

    @property
    def head(self) -> Head:
        """A head that names the class, or the language model's own."""
        if self.spec.task != "classification":
            return CAUSAL
        return Head("SEQ_CLS", names=self.classes)

    @property
    def sequence_length(self) -> int:
        """Tokens of the longest example."""
        return self.spec.data.sequence_length

    @property
    def examples(self) -> ExamplesConfig:
        """What data preparation is told."""
        data = self.spec.data
        validation = data.validation
        return ExamplesConfig(
            task=self.spec.task,
            sources=tuple(map(source_config, data.sources)),
            sequence_length=data.sequence_length,
            overlong=data.overlong,
            packing=data.packing,
            validation_fraction=validation.fraction if validation else None,
            validation_sources=tuple(map(source_config, (validation.sources if validation else None) or ())),
        )
