"""Which runs may go on from which checkpoints."""

from __future__ import annotations

from typing import Any, cast

import pytest

from trireme.checkpoints import Manifest
from trireme.resources.pretrain import PretrainSpec
from trireme_trainer.pretrain.config import PretrainConfig
from trireme_trainer.pretrain.continuity import differences, training_record


def config(**training: Any) -> PretrainConfig:
    spec = PretrainSpec.model_validate(
        {
            "model": {"preset": "llama3-8b"},
            "data": {"sources": [{"uri": "/text"}], "sequenceLength": 16},
            "training": {"globalBatchSize": 4, "steps": 12, **training},
            "workers": {"nodes": 1, "devicesPerNode": 1, "accelerator": {"kind": "cpu"}},
            "checkpoint": {"uri": "s3://bucket/jobs"},
        }
    )
    return PretrainConfig(cast(Any, None), spec, cast(Any, None))


def saved(step: int, by: PretrainConfig, **state: Any) -> Manifest:
    record = {"training": training_record(by), "totalSteps": by.spec.total_steps, **state}
    counters = {"seed": by.spec.training.seed, "nextSample": step * by.spec.training.global_batch_size}
    return Manifest.decode(
        Manifest(
            job_uid="u",
            attempt=1,
            step=step,
            tokens=counters["nextSample"] * by.spec.data.sequence_length,
            model_digest="m",
            dataset_digest="d",
            layout={},
            files=[],
            state={**counters, **{k: v for k, v in record.items() if v is not None}},
        ).encode()
    )


def test_the_same_run_goes_on_and_ends_as_it_did() -> None:
    run = config(optimizer={"learningRate": 1.1e-4}, schedule={"warmupRatio": 0.1})
    for step in (1, 11, 12):
        assert differences(run, saved(step, run)) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 7}, "training.seed is 0 there, 7 here"),
        ({"globalBatchSize": 8}, "training.globalBatchSize is 4 there, 8 here"),
        ({"optimizer": {"beta2": 0.99}}, "training.optimizer.beta2 is 0.95 there, 0.99 here"),
        ({"schedule": {"kind": "linear"}}, "training.schedule.kind is cosine there, linear here"),
        ({"gradientClip": 0}, "training.gradientClip is 1.0 there, 0.0 here"),
        ({"steps": 6}, "it is of step 6, this job's run has 6 steps"),
        ({"steps": 5}, "it is of step 6, this job's run has 5 steps"),
    ],
)
def test_other_settings_are_named_with_both_values(change: dict[str, Any], said: str) -> None:
    assert differences(config(**change), saved(6, config())) == said


def test_a_longer_run_and_another_way_to_cut_up_the_work_go_on() -> None:
    for change in ({"steps": 24}, {"microBatchSize": 2}, {"recompute": "full"}, {"validationBatches": 3}):
        assert differences(config(**change), saved(12, config())) is None


def test_a_checkpoint_without_a_record_is_judged_by_its_counters() -> None:
    old = saved(6, config(), training=None, totalSteps=None)
    assert differences(config(), old) is None
    assert differences(config(steps=6), old) is None
    assert differences(config(seed=1, globalBatchSize=2), old) == (
        "training.globalBatchSize is 4 there, 2 here; training.seed is 0 there, 1 here"
    )
