"""An RLHFJob's manifest: what is refused, what is chosen for what was left out, how the batch is cut up."""

import copy
from typing import Any

import pytest

from trireme.planning import PlanError
from trireme.resources import RLHF_JOB, SpecError

SPEC: dict[str, Any] = {
    "algorithm": "ppo",
    "policy": {"uri": "s3://models/base"},
    "data": {"sources": [{"uri": "s3://corpus/x"}]},
    "rewards": [{"name": "short", "length": {"max": 20}}],
    "workers": {"nodes": 2, "devicesPerNode": 2, "accelerator": {"kind": "cpu"}},
    "checkpoint": {"uri": "s3://runs/x"},
}
FUNCTION = {"configMap": {"name": "rewards"}}


def spec(**changes: Any) -> dict[str, Any]:
    """SPEC with changes at paths with __ between the names; None removes."""
    made = copy.deepcopy(SPEC)
    for path, value in changes.items():
        place = made
        *parents, last = path.split("__")
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is None:
            del place[last]
        else:
            place[last] = value
    return made


def settled(**changes: Any) -> Any:
    return RLHF_JOB.settle(RLHF_JOB.parse(spec(**changes)))[0]


def choices(**changes: Any) -> dict[str, str]:
    return {c.field: c.value for c in RLHF_JOB.settle(RLHF_JOB.parse(spec(**changes)))[1]}


def offline(algorithm: str, **changes: Any) -> dict[str, Any]:
    return {"algorithm": algorithm, "rewards": None, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "rloo"}, "'reward', 'dpo', 'grpo' or 'ppo'"),
        ({"policy": {}}, "exactly one of job and uri"),
        ({"reference": {}}, "exactly one of job and uri"),
        ({"rewards": None}, "rewards must be set for grpo and ppo"),
        ({"algorithm": "dpo"}, "rewards must be set for grpo and ppo, and for no other"),
        (offline("reward", reference={"uri": "/m"}), "a reward model has none"),
        (offline("dpo", data__promptLength=5), r"data.promptLength may be set for grpo and ppo only"),
        ({"dpo": {"beta": 0.2}}, "dpo may be set for algorithm dpo only"),
        ({"algorithm": "grpo", "ppo": {}}, "ppo may be set for algorithm ppo only"),
        ({"rewards": [{"name": "a"}]}, "reward a: exactly one of model, regex"),
        ({"rewards": [{"name": "a", "pythonSyntax": {}, "length": {"max": 1}}]}, "reward a: exactly one of"),
        ({"rewards": [{"name": "a", "length": {}}]}, "either target, or min and max"),
        ({"rewards": [{"name": "a", "length": {"target": 3, "max": 5}}]}, "either target, or min and max"),
        ({"rewards": [{"name": "a", "length": {"min": 6, "max": 5}}]}, "min 6 exceeds max 5"),
        ({"rewards": [{"name": "a", "pythonSyntax": {}}] * 2}, "names must differ"),
        ({"rewards": [{"name": "a", "pythonSyntax": {}, "weight": 0}]}, "greater than 0"),
        ({"rewards": [{"name": "../a", "function": FUNCTION}]}, "pattern"),
        ({"generation__topP": 0.9}, "topP and topK draw from other probabilities"),
        ({"generation__topK": 50}, "topP and topK draw from other probabilities"),
        ({"method__type": "prefix"}, "ppo does not train virtual tokens"),
        ({"algorithm": "grpo", "method__type": "prefix", "output__merge": True}, "part of no weight"),
        ({"ppo": {"clipRange": 1}}, "less than 1"),
        ({"ppo": {"ptx": {"sources": []}}}, "at least 1 item"),
    ],
)
def test_a_bad_manifest_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        RLHF_JOB.parse(spec(**changes))


def test_what_is_left_out_is_chosen_by_the_algorithm_and_the_rule_is_told() -> None:
    assert choices() == {
        "method.lora.rank": "8",
        "method.lora.alpha": "8.0",
        "training.epochs": "1.0",
        "training.optimizer.learningRate": "3e-05",
        "training.zeroStage": "0",
        "generation.maxNewTokens": "256",
        "generation.samplesPerPrompt": "1",
        "data.promptLength": "1792",
    }
    grpo = choices(algorithm="grpo", method__type="full", data__sequenceLength=64)
    assert (grpo["generation.samplesPerPrompt"], grpo["training.optimizer.learningRate"]) == ("8", "1e-06")
    assert (grpo["generation.maxNewTokens"], grpo["data.promptLength"]) == ("32", "32")
    dpo = choices(**offline("dpo"))
    assert "generation.maxNewTokens" not in dpo
    whole, why = RLHF_JOB.settle(RLHF_JOB.parse(spec()))
    assert all(choice.rule for choice in why)
    assert RLHF_JOB.settle(whole) == (whole, ()), "a settled spec stays as it is"
    assert RLHF_JOB.parse(whole.to_manifest()) == whole, "it is stored under the names of a manifest"


@pytest.mark.parametrize("algorithm", ["dpo", "grpo", "ppo"])
def test_a_settled_spec_holds_the_parameters_of_its_algorithm_alone(algorithm: str) -> None:
    changes = offline("dpo") if algorithm == "dpo" else {"algorithm": algorithm}
    whole = settled(**changes).to_manifest()
    assert {"dpo", "grpo", "ppo"} & set(whole) == {algorithm}


def test_an_update_of_ppo_is_cut_into_micro_batches_of_completions() -> None:
    plan: Any = RLHF_JOB.make_plan(
        settled(training__globalBatchSize=16, generation__samplesPerPrompt=3, ppo__miniBatches=2)
    )
    # 16 prompts of 3 completions on 4 ranks: 12 each, 6 an update
    assert (plan.data, plan.micro_batch_size, plan.accumulation_steps) == (4, 6, 1)
    grpo: Any = RLHF_JOB.make_plan(settled(algorithm="grpo", training__globalBatchSize=8))
    assert (grpo.micro_batch_size, grpo.accumulation_steps) == (8, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training__globalBatchSize": 6}, "6 prompts cannot be shared out evenly over 4 ranks"),
        ({"training__globalBatchSize": 8, "ppo__miniBatches": 3}, "2 completions cannot be cut into 3 mini-batches"),
        ({"data__sequenceLength": 64, "generation__maxNewTokens": 64}, "maxNewTokens 64 exceed 64 tokens"),
        (
            {"data": {"sources": [{"uri": "/x"}], "sequenceLength": 64, "promptLength": 60}},
            "promptLength 60 and maxNewTokens 32 exceed 64 tokens",
        ),
        ({"algorithm": "grpo", "generation__samplesPerPrompt": 1}, "at least 2"),
        (offline("dpo", training__globalBatchSize=6), "6 examples cannot be shared out evenly over 4 ranks"),
    ],
)
def test_what_cannot_be_cut_up_or_does_not_fit_is_refused_with_the_numbers(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        RLHF_JOB.make_plan(settled(**changes))


def test_every_job_that_is_named_is_waited_for() -> None:
    parsed = RLHF_JOB.parse(
        spec(
            policy={"job": {"name": "llama"}},
            reference={"job": {"kind": "FineTuneJob", "name": "assistant"}},
            rewards=[
                {"name": "short", "length": {"max": 20}},
                {"name": "liked", "model": {"job": {"kind": "RLHFJob", "name": "scorer"}}},
                {"name": "safe", "model": {"uri": "s3://models/safe"}},
            ],
        )
    )
    assert {field: str(job) for field, job in RLHF_JOB.references(parsed).items()} == {
        "policy.job": "PretrainJob/llama",
        "reference.job": "FineTuneJob/assistant",
        "rewards[1].model.job": "RLHFJob/scorer",
    }


def test_the_source_of_every_reward_function_is_asked_for_under_the_reward_name() -> None:
    parsed = RLHF_JOB.parse(
        spec(
            rewards=[
                {"name": "syntax", "pythonSyntax": {}},
                {"name": "exact", "function": {"configMap": {"name": "mine", "key": "a.py"}}},
                {"name": "other", "function": FUNCTION},
            ]
        )
    )
    files = RLHF_JOB.config_map_files(parsed)
    assert [(f.name, f.config_map, f.key) for f in files] == [
        ("exact.py", "mine", "a.py"),
        ("other.py", "rewards", "reward.py"),
    ]
