"""From the spec and plan of a fine-tuning job to what preparation and ranks are told."""

from __future__ import annotations

from trireme.planning.data_parallel import DataParallelPlan
from trireme.protocol import JobConfig
from trireme.resources.finetune import FineTuneSpec
from trireme_trainer.data.example_files import ExamplesConfig
from trireme_trainer.hf.config import HFConfig, source_config


class FineTuneConfig(HFConfig[FineTuneSpec]):
    """A fine-tuning job, parsed."""

    @classmethod
    def parse(cls, job: JobConfig) -> FineTuneConfig:
        """Raises pydantic.ValidationError when spec or plan are not of this version."""
        return cls(job, FineTuneSpec.model_validate(job.spec), DataParallelPlan.model_validate(job.plan))

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
            validation_fraction=validation.fraction if validation else None,
            validation_sources=tuple(map(source_config, (validation.sources if validation else None) or ())),
        )
