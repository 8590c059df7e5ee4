"""A PPO job as its agents see it: what it learns, what survives a lost rank, what comes out and what is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from finetune_harness import finish, losses, make_base, make_kind_job
from gang_harness import Gang, S3Server
from safetensors import safe_open
from test_aligning import HELD_OUT, KIND, LEARNED, disturbed, make_spec
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from stdlib_examples import write_prompts
from trireme.checkpoints.samples import parse_samples
from trireme.protocol import AgentState


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    assert write_prompts(folder / "train.jsonl", *LEARNED) > 100
    assert write_prompts(folder / "held-out.jsonl", *HELD_OUT) > 20
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"def number_{n}(): return {n}"}) + "\n" for n in range(40)))
    return path


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, policy: Path) -> Path:
    """A reward model: the policy's body with a head that nobody taught."""
    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((policy / name).read_bytes())
    return folder


def spec_of(policy: Path, prompts: Path, **changes: Any) -> dict[str, Any]:
    settings = {"training__steps": 12, "training__globalBatchSize": 8, "ppo": {"epochs": 2}, **changes}
    return make_spec("ppo", policy, prompts, **settings)


@pytest.mark.parametrize(
    "changes",
    [
        {"ppo": {"epochs": 2, "miniBatches": 2}, "workers__devicesPerNode": 2},
        {"method__type": "full", "workers__devicesPerNode": 2, "training__zeroStage": 2},
    ],
    ids=["LoRA on two, two mini-batches", "full, ZeRO-2"],
)
def test_a_run_that_lost_a_rank_ends_as_one_that_did_not(
    make_gang: Callable[..., Gang],
    server: S3Server,
    policy: Path,
    prompts: Path,
    text: Path,
    judge: Path,
    changes: dict[str, Any],
) -> None:
    spec = spec_of(policy, prompts, **changes)
    spec["ppo"]["ptx"] = {"sources": [{"uri": str(text)}]}
    spec["rewards"].append({"name": "liked", "weight": 0.1, "model": {"uri": str(judge)}})
    undisturbed = make_gang(config=make_kind_job(KIND, server, spec, "undisturbed"))
    _, report = finish(undisturbed)
    gang = make_gang(config=make_kind_job(KIND, server, spec))
    ended, _ = disturbed(gang, 12)
    expected, found = losses(undisturbed), losses(gang)
    assert set(expected) == set(found) == set(range(1, 13))
    assert max(abs(expected[step] - found[step]) for step in expected) < 1e-4
    for name, value in report.progress.metrics.items():
        assert ended.progress.metrics[name] == pytest.approx(value, abs=1e-3), name
    assert {"reward", "kl", "entropy", "clipFraction", "length", "valueLoss", "ptxLoss", "rewards/liked"} <= set(
        ended.progress.metrics
    )


def test_ranks_share_the_work_and_change_nothing_of_it(
    make_gang: Callable[..., Gang], server: S3Server, policy: Path, prompts: Path
) -> None:
    found = []
    for ranks, micro in ((1, 4), (2, 1)):
        spec = spec_of(policy, prompts, training__steps=3, workers__devicesPerNode=ranks)
        spec["training"] |= {"microBatchSize": micro}
        spec["ppo"] = {"epochs": 2, "miniBatches": 2}
        gang = make_gang(config=make_kind_job(KIND, server, spec, f"on-{ranks}"))
        finish(gang)
        found.append(losses(gang))
    assert max(abs(found[0][step] - found[1][step]) for step in found[0]) < 1e-4


def test_a_policy_comes_out_without_its_value_head_and_what_it_said_is_stored(
    make_gang: Callable[..., Gang], server: S3Server, policy: Path, prompts: Path
) -> None:
    spec = spec_of(policy, prompts, training__steps=6, checkpoint__intervalSteps=3)
    gang = make_gang(config=make_kind_job(KIND, server, spec))
    finish(gang)
    place = gang.job_directory / "model" / "a1"
    adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(policy), place)
    assert any(p.abs().sum() > 0 for name, p in adapted.named_parameters() if "lora_B" in name)
    with safe_open(place / "adapter_model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "value_head" in name]  # noqa: SIM118
    (shard,) = (gang.job_directory / "a1" / "step-3").glob("trainable-*.safetensors")
    with safe_open(shard, "pt") as file:
        assert "weight/value_head.weight" in file.keys()  # noqa: SIM118
    stored = [parse_samples(p.read_bytes()) for p in (gang.job_directory / "samples").glob("a1/*.jsonl")]
    samples = [sample for part in stored for sample in part]
    assert {sample.step for sample in samples} == set(range(1, 7))
    assert all(sample.reward == sample.rewards["call"] for sample in samples)
    assert all((sample.reward == 1) == ("(" in sample.completion) for sample in samples)
    assert all(sample.prompt.startswith("def ") for sample in samples)


FUNCTION = "def reward(prompts, completions, name, **_):\n    {body}\n    return [float(len(c)) for c in completions]"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError(name[0])", "KeyError"),
        ("import time; time.sleep(60)", "longer than 2 s"),
        ("return [float('nan')] * len(name)", "returned nan"),
    ],
)
def test_a_reward_function_that_fails_ends_the_run_with_its_name_and_the_prompt(
    make_gang: Callable[..., Gang],
    server: S3Server,
    policy: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    message: str,
) -> None:
    monkeypatch.setenv("TRIREME_FILES_DIR", str(tmp_path))
    (tmp_path / "mine.py").write_text(FUNCTION.format(body=body))
    spec = spec_of(policy, prompts)
    del spec["data"]["validation"]
    spec["rewards"] = [{"name": "mine", "function": {"configMap": {"name": "x"}, "timeoutSeconds": 2}}]
    gang = make_gang(config=make_kind_job(KIND, server, spec))
    gang.start_all()
    gang.form()
    failure = gang.wait_state(AgentState.FAILED, seconds=90)[0].failure
    assert failure.message.startswith("reward mine: ")
    assert message in failure.message
    assert "first prompt concerned: 'def " in failure.message


def test_a_reward_function_that_does_not_load_is_refused_before_ranks_start(
    make_gang: Callable[..., Gang],
    server: S3Server,
    policy: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRIREME_FILES_DIR", str(tmp_path))
    (tmp_path / "mine.py").write_text("def rewards(): ...")
    spec = spec_of(policy, prompts)
    spec["rewards"] = [{"name": "mine", "function": {"configMap": {"name": "x"}}}]
    gang = make_gang(config=make_kind_job(KIND, server, spec))
    gang.start_all()
    gang.hold()
    problem = gang.prepare().inputs_problem
    assert problem is not None
    assert (problem.reason, problem.retryable) == ("RewardUnusable", False)
    assert "reward mine" in problem.message


@pytest.mark.long
def test_ppo_raises_a_verifiable_reward_on_prompts_that_it_did_not_learn_from(
    make_gang: Callable[..., Gang], server: S3Server, policy: Path, prompts: Path
) -> None:
    changes = {"method__type": "full", "training__optimizer": {"learningRate": 0.003}, "ppo": {"epochs": 4}}
    spec = spec_of(policy, prompts, training__steps=40, training__globalBatchSize=64, **changes)
    spec["rewards"] = [{"name": "call", "regex": {"pattern": "[(=]"}}]
    gang = make_gang(config=make_kind_job(KIND, server, spec))
    _, report = finish(gang)
    metrics = report.progress.metrics
    assert metrics["start/reward"] > 0.05
    assert metrics["validation/reward"] > metrics["start/reward"] + 0.1
    assert metrics["validation/rewards/call"] == pytest.approx(metrics["validation/reward"])
