"""From the spec and plan of an RLHF job to what preparation and ranks are told."""

from __future__ import annotations

from typing import Any

from trireme.planning.data_parallel import DataParallelPlan
from trireme.protocol import JobConfig
from trireme.resources.rlhf import ONLINE, RLHFSpec
from trireme_trainer.data.example_files import ExamplesConfig
from trireme_trainer.hf.config import HFConfig, source_config
from trireme_trainer.hf.models import CAUSAL, SCORE, Head

ALGORITHM_FIELDS = ("algorithm", "dpo", "grpo", "ppo", "generation", "rewards")


class RLHFConfig(HFConfig[RLHFSpec]):
    """An RLHF job, parsed."""

    base_name = "policy"
    reference_name = "reference"

    @classmethod
    def parse(cls, job: JobConfig) -> RLHFConfig:
        """Raises pydantic.ValidationError when spec or plan are not of this version."""
        return cls(job, RLHFSpec.model_validate(job.spec), DataParallelPlan.model_validate(job.plan))

    @property
    def head(self) -> Head:
        """A reward model answers with one number."""
        return SCORE if self.spec.algorithm == "reward" else CAUSAL

    @property
    def online(self) -> bool:
        """Whether the model learns from its own completions."""
        return self.spec.algorithm in ONLINE

    @property
    def sequence_length(self) -> int:
        """Most tokens of a prompt with its completion."""
        return self.spec.data.sequence_length

    @property
    def record(self) -> dict[str, Any]:
        """Also what the algorithm is told."""
        spec = self.spec.to_manifest()
        algorithm = {name: spec[name] for name in ALGORITHM_FIELDS if name in spec}
        # A list is one setting: a run that adds a reward is another run.
        algorithm["rewards"] = str(algorithm.get("rewards"))
        return {**super().record, **algorithm}

    @property
    def examples(self) -> ExamplesConfig:
        """What data preparation is told."""
        data = self.spec.data
        validation = data.validation
        assert data.prompt_length is not None or not self.online, "settled at admission"
        return ExamplesConfig(
            task="prompts" if self.online else "comparisons",
            sources=tuple(map(source_config, data.sources)),
            sequence_length=data.prompt_length if self.online and data.prompt_length else data.sequence_length,
            overlong=data.overlong,
            validation_fraction=validation.fraction if validation else None,
            validation_sources=tuple(map(source_config, (validation.sources if validation else None) or ())),
            length_field="data.promptLength" if self.online else "data.sequenceLength",
        )
