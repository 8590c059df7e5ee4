"""From the job's spec and plan to what engine and data preparation are told."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from trireme.checkpoints import digest_bytes
from trireme.planning.types import Plan
from trireme.protocol import JobConfig
from trireme.resources.pretrain import PretrainSpec
from trireme.resources.pretrain import Source as SourceSpec
from trireme_trainer.agent.programs import PRETRAIN_WEIGHTS, StartingWeights, find_program
from trireme_trainer.data.prepare import DataConfig
from trireme_trainer.data.sources import SourceConfig
from trireme_trainer.engines.interface import (
    EngineConfig,
    ModelShape,
    OptimizerConfig,
    ParallelLayout,
    ScheduleConfig,
)


@dataclass(frozen=True)
class PretrainConfig:
    """A pretraining job, parsed."""

    job: JobConfig
    spec: PretrainSpec
    plan: Plan

    @classmethod
    def parse(cls, job: JobConfig) -> PretrainConfig:
        """Raises pydantic.ValidationError when spec or plan are not of this version."""
        return cls(job, PretrainSpec.model_validate(job.spec), Plan.model_validate(job.plan))

    @property
    def starting(self) -> StartingWeights | None:
        """The weights that training starts from, if any."""
        return find_program(self.job.program).weights(self.job).get(PRETRAIN_WEIGHTS.name)

    @property
    def model(self) -> ModelShape:
        """The model's shape."""
        shape = self.spec.shape
        return ModelShape(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            num_key_value_heads=shape.key_value_heads,
            max_position_embeddings=shape.max_position_embeddings or self.spec.data.sequence_length,
            head_dim=shape.head_size,
            rope_theta=shape.rope_theta,
            rms_norm_eps=shape.rms_norm_eps,
            tie_word_embeddings=shape.tie_word_embeddings,
            initializer_range=shape.initializer_range,
        )

    @property
    def model_digest(self) -> str:
        """Of the architecture; how weights are first drawn is no part of it."""
        shape = {k: v for k, v in asdict(self.model).items() if k != "initializer_range"}
        return digest_bytes(json.dumps({"family": self.spec.model.family, **shape}, sort_keys=True).encode())

    @property
    def layout(self) -> ParallelLayout:
        """Sizes of the axes."""
        return ParallelLayout(self.plan.tensor, self.plan.pipeline, self.plan.data, self.plan.context)

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """What ranks compute on, in torch's words."""
        return "cpu" if self.plan.accelerator == "cpu" else "cuda"

    @property
    def engine(self) -> EngineConfig:
        """What the engine is told."""
        training = self.spec.training
        optimizer = training.optimizer
        return EngineConfig(
            model=self.model,
            schedule=ScheduleConfig(
                total_steps=self.spec.total_steps,
                kind=training.schedule.kind,
                warmup_steps=self.spec.warmup_steps,
                min_learning_rate=training.min_learning_rate,
            ),
            sequence_length=self.spec.data.sequence_length,
            global_batch_size=training.global_batch_size,
            micro_batch_size=self.plan.micro_batch_size,
            layout=self.layout,
            optimizer=OptimizerConfig(
                learning_rate=optimizer.learning_rate,
                beta1=optimizer.beta1,
                beta2=optimizer.beta2,
                eps=optimizer.eps,
                weight_decay=optimizer.weight_decay,
                clip_grad=training.gradient_clip,
            ),
            precision=training.precision,
            seed=training.seed,
            recompute=self.plan.recompute,
        )

    @property
    def data(self) -> DataConfig:
        """What data preparation is told."""
        data = self.spec.data
        validation = data.validation
        return DataConfig(
            sources=tuple(map(_source, data.sources)),
            sequence_length=data.sequence_length,
            vocab_size=self.spec.tokenizer_vocab_size,
            model_vocab_size=self.spec.shape.vocab_size,
            tokenizer_uri=data.tokenizer.uri,
            packing=data.packing,
            validation_fraction=validation.fraction if validation else None,
            validation_sources=tuple(map(_source, (validation.sources if validation else None) or ())),
        )


def _source(source: SourceSpec) -> SourceConfig:
    return SourceConfig(
        uri=source.uri,
        weight=source.weight,
        format=source.format,
        text_field=source.text_field,
        include=tuple(source.include),
        exclude=tuple(source.exclude),
    )
