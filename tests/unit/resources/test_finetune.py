"""A FineTuneJob's manifest: what is refused, what is chosen for what was left out, and how the batch is cut up."""

import copy
from typing import Any

import pytest

from trireme.planning import PlanError
from trireme.resources import FINETUNE_JOB, SpecError

SPEC: dict[str, Any] = {
    "base": {"uri": "s3://models/base"},
    "task": "instruction",
    "data": {"sources": [{"uri": "s3://corpus/x"}]},
    "workers": {"nodes": 2, "devicesPerNode": 2, "accelerator": {"kind": "cpu"}},
    "checkpoint": {"uri": "s3://runs/x"},
}


def spec(**changes: Any) -> dict[str, Any]:
    """SPEC with changes at paths with __ between the names."""
    made = copy.deepcopy(SPEC)
    for path, value in changes.items():
        place = made
        *parents, last = path.split("__")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return made


def choices(**changes: Any) -> dict[str, str]:
    return {c.field: c.value for c in FINETUNE_JOB.settle(FINETUNE_JOB.parse(spec(**changes)))[1]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": {}}, "exactly one of job and uri"),
        ({"base": {"uri": "s3://a/b", "job": {"name": "x"}}}, "exactly one of job and uri"),
        ({"method__type": "peft"}, "peft must be set for type peft"),
        ({"method__peft": {"peft_type": "IA3"}}, "peft must be set for type peft"),
        ({"method__lora__rank": 0}, "greater than or equal to 1"),
        ({"training__steps": 5, "training__epochs": 1}, "at most one of steps and epochs"),
        ({"training__zeroStage": 4}, "less than or equal to 3"),
        ({"data__chatTemplate": "x"}, "task chat only"),
        ({"method__type": "prefix", "output__merge": True}, "trains virtual tokens"),
        ({"task": "poetry"}, "instruction"),
        ({"training__earlyStopping": {}}, "training.earlyStopping needs data.validation"),
        ({"training__earlyStopping": {"patience": 0}}, "greater than or equal to 1"),
        ({"data__labels": ["a", "b"]}, "data.labels may be set for task classification only"),
        ({"task": "classification", "data__labels": ["a"]}, "two or more different names"),
        ({"task": "classification", "data__labels": ["a", "a"]}, "two or more different names"),
        ({"task": "classification", "data__packing": True}, "each row is one text"),
        ({"task": "classification", "method__type": "promptTuning"}, "method.type promptTuning: the class is read at"),
        ({"task": "classification", "method__type": "pTuning"}, "method.type pTuning: the class is read at"),
        ({"data__packing": True, "method__type": "prefix"}, "virtual tokens of prefix stand before a row"),
    ],
)
def test_a_bad_manifest_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        FINETUNE_JOB.parse(spec(**changes))


def test_what_is_left_out_is_chosen_by_the_method_and_the_rule_is_told() -> None:
    assert choices() == {
        "method.lora.rank": "8",
        "method.lora.alpha": "8.0",
        "training.epochs": "3.0",
        "training.optimizer.learningRate": "0.0002",
        "training.zeroStage": "0",
    }
    full = choices(method__type="full")
    assert (full["training.optimizer.learningRate"], full["training.zeroStage"]) == ("2e-05", "2")
    assert "method.lora.rank" not in full
    assert choices(method__type="prefix")["method.virtualTokens"] == "20"
    given = choices(
        method__lora__rank=16,
        method__lora__alpha=32,
        training__steps=10,
        training__optimizer__learningRate=0.1,
        training__zeroStage=1,
    )
    assert given == {}
    settled, why = FINETUNE_JOB.settle(FINETUNE_JOB.parse(spec()))
    assert all(choice.rule for choice in why)
    assert FINETUNE_JOB.settle(settled) == (settled, ()), "a settled spec stays as it is"


def test_the_batch_is_shared_out_evenly_or_refused_with_the_numbers() -> None:
    settled, _ = FINETUNE_JOB.settle(FINETUNE_JOB.parse(spec(training__globalBatchSize=48)))
    plan: Any = FINETUNE_JOB.make_plan(settled)
    assert (plan.data, plan.micro_batch_size, plan.accumulation_steps, plan.engine) == (4, 6, 2, "ddp")
    for batch, micro, message in (
        (6, "auto", "6 examples cannot be shared out evenly over 4 ranks"),
        (8, 3, "2 examples"),
    ):
        changed = spec(training__globalBatchSize=batch, training__microBatchSize=micro)
        settled, _ = FINETUNE_JOB.settle(FINETUNE_JOB.parse(changed))
        with pytest.raises(PlanError, match=message):
            FINETUNE_JOB.make_plan(settled)


@pytest.mark.parametrize(
    ("changes", "reason", "field", "message"),
    [
        ({}, "CannotQuantise", "method.type", "workers.accelerator.kind is cpu; use lora"),
        (
            {"workers__accelerator__kind": "a100-80g", "training__zeroStage": 3},
            "CannotQuantise", "training.zeroStage", "packed in 4 bits",
        ),
        (
            {"workers__accelerator__kind": "v100-sxm-32g"},
            "PrecisionNotAvailable", "training.precision", "v100-sxm-32g does not compute in bf16",
        ),
    ],
)  # fmt: skip
def test_a_base_in_4_bits_is_refused_where_it_cannot_be_held_so(
    changes: dict[str, Any], reason: str, field: str, message: str
) -> None:
    settled, _ = FINETUNE_JOB.settle(FINETUNE_JOB.parse(spec(method__type="qlora", **changes)))
    with pytest.raises(PlanError, match=message) as refused:
        FINETUNE_JOB.make_plan(settled)
    assert (refused.value.reason, refused.value.field) == (reason, field)


def test_qlora_is_planned_on_devices_that_quantise() -> None:
    changed = spec(method__type="qlora", workers__accelerator__kind="l40s")
    settled, why = FINETUNE_JOB.settle(FINETUNE_JOB.parse(changed))
    assert {c.field: c.value for c in why}["method.lora.rank"] == "8"
    plan: Any = FINETUNE_JOB.make_plan(settled)
    assert plan.device_memory_bytes == 48 * 1024**3


def test_the_plan_knows_the_memory_of_a_rank() -> None:
    """On a processor the pod's limit shared out over its ranks; the accelerator's own where it is given."""
    for changes, expected in (
        ({}, None),
        ({"workers__resources": {"limits": {"memory": "8Gi"}}}, 4 * 1024**3),
        ({"workers__accelerator": {"kind": "a100-80g", "memory": "40Gi"}}, 40 * 1024**3),
    ):
        settled, _ = FINETUNE_JOB.settle(FINETUNE_JOB.parse(spec(**changes)))
        plan: Any = FINETUNE_JOB.make_plan(settled)
        assert plan.device_memory_bytes == expected


def test_a_base_job_is_waited_for() -> None:
    parsed = FINETUNE_JOB.parse(spec(base={"job": {"name": "llama"}}))
    assert {field: str(job) for field, job in FINETUNE_JOB.references(parsed).items()} == {
        "base.job": "PretrainJob/llama"
    }
