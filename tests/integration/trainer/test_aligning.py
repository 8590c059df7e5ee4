"""An RLHF job as its agents see it: what it learns, what survives a lost rank, what comes out."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from finetune_harness import Spec, change, finish, gradient_norms, losses, make_base, make_kind_job
from gang_harness import BUCKET, Gang, S3Server, wait_for
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from stdlib_examples import write_comparisons, write_prompts
from trireme.protocol import AgentState
from trireme.resources import job_kind_named

KIND = job_kind_named("RLHFJob")
LEARNED, HELD_OUT = ("argparse.py", "shutil.py", "tarfile.py"), ("textwrap.py", "string.py", "calendar.py")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparisons")
    assert write_comparisons(folder / "train.jsonl", *LEARNED, shouted=True) > 100
    assert write_comparisons(folder / "held-out.jsonl", *HELD_OUT, shouted=True) > 20
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    assert write_prompts(folder / "train.jsonl", *LEARNED) > 100
    assert write_prompts(folder / "held-out.jsonl", *HELD_OUT) > 20
    return folder


def make_spec(algorithm: str, policy: Path, data: Path, **changes: Any) -> Spec:
    spec: Spec = {
        "algorithm": algorithm,
        "policy": {"uri": str(policy)},
        "data": {
            "sources": [{"uri": str(data / "train.jsonl")}],
            "validation": {"sources": [{"uri": str(data / "held-out.jsonl")}]},
            "sequenceLength": 384,
            "overlong": "drop",
        },
        "training": {
            "globalBatchSize": 8,
            "steps": 30,
            "precision": "fp32",
            "optimizer": {"learningRate": 0.005},
            "validationIntervalSteps": 1000,
        },
        "workers": {"nodes": 1, "devicesPerNode": 1, "accelerator": {"kind": "cpu"}},
        "checkpoint": {"uri": f"s3://{BUCKET}/jobs", "intervalSteps": 5},
    }
    if algorithm in ("grpo", "ppo"):
        spec["data"]["sequenceLength"] = 160
        spec["generation"] = {"maxNewTokens": 8}
        spec["rewards"] = [{"name": "call", "regex": {"pattern": "[(]"}}]
    return change(spec, **changes)


def disturbed(gang: Gang, last: int) -> tuple[Any, int]:
    """(last report, step of the resume point) of a run that loses a rank after its first checkpoint."""
    gang.start_all()
    first = gang.form()
    wait_for(lambda: gang.agents[0].report().checkpoint.last_committed, 120, 0.02)
    os.kill(gang.agents[0].rank_pids()[-1], signal.SIGKILL)
    gang.wait_state(AgentState.FAILED, seconds=30)
    second = gang.form(dataset=first.proposal.dataset)
    assert 5 <= second.proposal.resume.step < last
    ended = gang.wait_state(AgentState.SUCCEEDED)[0]
    gang.release()
    return ended, second.proposal.resume.step


@pytest.mark.parametrize(
    ("algorithm", "changes"),
    [
        pytest.param("dpo", {"workers__devicesPerNode": 2}, id="DPO, LoRA on two"),
        pytest.param(
            "dpo",
            {"method__type": "full", "workers__devicesPerNode": 2, "training__zeroStage": 2},
            id="DPO, full, ZeRO-2",
            marks=pytest.mark.long,
        ),
        pytest.param("reward", {}, id="reward model", marks=pytest.mark.long),
        pytest.param(
            "grpo",
            {"generation__samplesPerPrompt": 4, "grpo": {"iterations": 2, "beta": 0.05}},
            id="GRPO, two updates a step",
        ),
        pytest.param(
            "grpo",
            {"generation__samplesPerPrompt": 4, "workers__devicesPerNode": 2, "training__globalBatchSize": 4},
            id="GRPO on two",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_run_that_lost_a_rank_ends_as_one_that_did_not(
    make_gang: Callable[..., Gang],
    server: S3Server,
    policy: Path,
    comparisons: Path,
    prompts: Path,
    algorithm: str,
    changes: dict[str, Any],
) -> None:
    data = prompts if algorithm == "grpo" else comparisons
    spec = make_spec(algorithm, policy, data, **changes)
    undisturbed = make_gang(config=make_kind_job(KIND, server, spec, "undisturbed"))
    _, report = finish(undisturbed)
    gang = make_gang(config=make_kind_job(KIND, server, spec))
    ended, _ = disturbed(gang, 30)
    for series in (losses, gradient_norms):
        expected, found = series(undisturbed), series(gang)
        assert set(expected) == set(found) == set(range(1, 31))
        assert max(abs(expected[step] - found[step]) for step in expected) < 1e-4
    assert len(set(expected.values())) > 10
    assert ended.progress.metrics.keys() == report.progress.metrics.keys()
    for name, value in report.progress.metrics.items():
        assert ended.progress.metrics[name] == pytest.approx(value, abs=1e-3), name


def test_dpo_prefers_what_the_comparisons_prefer_also_where_it_did_not_learn(
    make_gang: Callable[..., Gang], server: S3Server, policy: Path, comparisons: Path
) -> None:
    spec = make_spec("dpo", policy, comparisons)
    gang = make_gang(config=make_kind_job(KIND, server, spec))
    _, report = finish(gang)
    metrics = report.progress.metrics
    # The policy is its own reference at the start: no answer has a margin, and -log sigmoid(0) is log 2.
    assert (metrics["start/margin"], metrics["start/accuracy"]) == (0, 0.5)
    assert metrics["start/loss"] == pytest.approx(0.6931, abs=1e-4)
    assert metrics["validation/accuracy"] > 0.9
    assert report.progress.validation_loss < metrics["start/loss"]
    place = gang.job_directory / "model" / "a1"
    adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(policy), place)
    assert adapted.peft_config["default"].base_model_name_or_path == str(policy)


def test_a_reward_model_comes_out_that_scores_as_it_was_validated(
    make_gang: Callable[..., Gang], server: S3Server, policy: Path, comparisons: Path
) -> None:
    spec = make_spec("reward", policy, comparisons, method__type="full")
    gang = make_gang(config=make_kind_job(KIND, server, spec))
    _, report = finish(gang)
    place = gang.job_directory / "model" / "a1"
    model = AutoModelForSequenceClassification.from_pretrained(place)
    tokenizer = AutoTokenizer.from_pretrained(place)
    assert model.config.num_labels == 1
    assert model.config.pad_token_id is not None
    won = compared = 0

    for line in (comparisons / "held-out.jsonl").read_text().splitlines():
        record = json.loads(line)
        rows = [
            [*tokenizer(record["prompt"])["input_ids"], *tokenizer(record[name])["input_ids"], tokenizer.eos_token_id]
            for name in ("chosen", "rejected")
        ]
        if max(map(len, rows)) > 384:
            continue
        with torch.no_grad():
            better, worse = (float(model(torch.tensor([row])).logits) for row in rows)
        won, compared = won + (better > worse), compared + 1
    assert report.progress.metrics["validation/accuracy"] == pytest.approx(won / compared, abs=1e-6)
    assert report.progress.loss < 0.6931


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="LoRA"),
        pytest.param(
            {"method__type": "full", "workers__devicesPerNode": 2, "training__zeroStage": 3},
            id="full, ZeRO-3",
            marks=pytest.mark.long,
        ),
    ],
)
def test_grpo_is_held_at_the_reference_that_is_named(
    make_gang: Callable[..., Gang],
    server: S3Server,
    policy: Path,
    prompts: Path,
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    other = make_base(tmp_path, seed=1)
    spec = make_spec("grpo", policy, prompts, training__steps=1, generation__samplesPerPrompt=4, **changes)
    spec |= {"reference": {"uri": str(other)}, "grpo": {"beta": 0.05}}
    del spec["data"]["validation"]
    _, report = finish(make_gang(config=make_kind_job(KIND, server, spec)))
    assert report.progress.metrics["kl"] > 0.003, "the policy as it starts would be at 0"


@pytest.mark.long
def test_grpo_raises_a_verifiable_reward_on_prompts_that_it_did_not_learn_from(
    make_gang: Callable[..., Gang], server: S3Server, policy: Path, prompts: Path
) -> None:
    changes = {"method__type": "full", "training__optimizer": {"learningRate": 0.01}}
    spec = make_spec("grpo", policy, prompts, generation__samplesPerPrompt=8, **changes)
    gang = make_gang(config=make_kind_job(KIND, server, spec))
    _, report = finish(gang)
    metrics = report.progress.metrics
    assert metrics["start/reward"] > 0.05
    assert metrics["validation/reward"] > metrics["start/reward"] + 0.1
    assert list((gang.job_directory / "samples").rglob("*")), "some completions are stored"
    assert metrics["validation/rewards/call"] == pytest.approx(metrics["validation/reward"])
