"""Inputs that do not fit a fine-tuning job: slot 0 says why, with the first line or file, before any rank starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
from finetune_harness import make_base, make_finetune_job, make_finetune_spec
from gang_harness import S3Server, s3_server
from transformers import AutoModelForCausalLM

from trireme.protocol import InputsProblem, Phase, Target
from trireme_trainer.finetune.prepare import prepare

GOOD = {"instruction": "Add.", "input": "1 2", "output": "3"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    return write(tmp_path, GOOD, GOOD)


def write(directory: Path, *records: Any) -> Path:
    path = directory / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, records)) + "\n")
    return path


@pytest.fixture
def outcome(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What slot 0 answers for a base, examples and changes of the spec."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)

    def ask(base: Path, examples: Path, **changes: Any) -> Any:
        job = make_finetune_job(server, make_finetune_spec(base, examples, **changes))
        target = Target(job_uid=job.job.uid, attempt=1, phase=Phase.PREPARE)
        return prepare(job, target, tmp_path / "scratch")

    return ask


def refused(outcome: Any, *given: Any, **changes: Any) -> InputsProblem:
    problem = outcome(*given, **changes).problem
    assert problem is not None
    assert not problem.retryable
    return problem


@pytest.mark.parametrize(
    ("task", "record", "message"),
    [
        ("instruction", {"question": "a", "answer": "b"}, "no field 'instruction'; it has 'question', 'answer'"),
        ("instruction", {**GOOD, "output": ""}, "field 'output' is empty"),
        ("completion", {"prompt": "a", "completion": " "}, "field 'completion' is empty"),
        ("completion", {"prompt": "a" * 2000, "completion": "b"}, "its prompt alone fills the 512 tokens"),
        ("classification", {"text": "a"}, "no field 'label'"),
    ],
    ids=["other columns", "empty output", "empty completion", "long prompt", "no label"],
)
def test_the_first_bad_line_is_named(
    outcome: Any, base: Path, tmp_path: Path, task: str, record: dict[str, Any], message: str
) -> None:
    good = {"instruction": GOOD, "completion": {"text": "x"}, "classification": {"text": "x", "label": "a"}}[task]
    changes = {"task": task, "data__overlong": "truncate"}
    problem = refused(outcome, base, write(tmp_path, good, record, record), **changes)
    assert problem.reason == "ExampleInvalid"
    assert f"train.jsonl line 2: {message}" in problem.message


def test_labels_that_are_all_alike_are_refused(outcome: Any, base: Path, tmp_path: Path) -> None:
    texts = [{"text": str(number), "label": "a"} for number in range(4)]
    problem = refused(outcome, base, write(tmp_path, *texts), task="classification")
    assert (problem.reason, "every example has the label 'a'" in problem.message) == ("LabelsUnusable", True)


@pytest.mark.parametrize(
    ("changes", "reason", "message"),
    [
        (
            {"data__sequenceLength": 513},
            "SequenceTooLong", "data.sequenceLength is 513, the base's max_position_embeddings is 512",
        ),
        (
            {"method": {"type": "promptTuning", "virtualTokens": 8}},
            "SequenceTooLong", "is 512 and 8 virtual tokens stand before an example",
        ),
        ({"method": {"lora": {"targetModules": ["query"]}}}, "MethodUnusable", "query"),
        ({"method": {"type": "peft", "peft": {"peft_type": "LORA", "r": 0}}}, "MethodUnusable", "r"),
        ({"method": {"type": "peft", "peft": {"peft_type": "IA3", "rank": 1}}}, "MethodUnusable", "rank"),
        (
            {"method": {"type": "peft", "peft": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}},
             "data": {"packing": True, "sequenceLength": 64}},
            "MethodUnusable", "the virtual tokens of PREFIX_TUNING stand before a row",
        ),
        (
            {"workers__resources": {"limits": {"memory": "256Mi"}}},
            "DoesNotFit", "GiB on a device and 0.2 GiB are there (weights 0.0, gradients 0.0, ",
        ),
    ],
    ids=["context", "virtual tokens", "target modules", "rank 0", "unknown field", "packing", "memory"],
)  # fmt: skip
def test_a_job_that_does_not_fit_its_base_is_refused(
    outcome: Any, base: Path, examples: Path, changes: dict[str, Any], reason: str, message: str
) -> None:
    if "data" in changes:
        changes = {**changes, "data": {"sources": [{"uri": str(examples)}], **changes["data"]}}
    problem = refused(outcome, base, examples, **changes)
    assert problem.reason == reason
    assert message in problem.message


def test_a_base_without_tokenizer_is_refused(outcome: Any, base: Path, examples: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(base / name, bare / name)
    problem = refused(outcome, bare, examples)
    assert problem.reason == "TokenizerUnusable"
    assert "tokenizer" in problem.message


@pytest.mark.parametrize("damage", ["cut", "garbled"])
def test_a_corrupt_weight_file_is_named(outcome: Any, base: Path, examples: Path, tmp_path: Path, damage: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    path = broken / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"\xff" * 8 + whole[8:])
    problem = refused(outcome, broken, examples)
    assert problem.reason == "BaseUnusable"
    assert "model.safetensors is corrupt" in problem.message


def test_an_adapter_is_no_base(outcome: Any, base: Path, examples: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "adapter")
    problem = refused(outcome, tmp_path / "adapter", examples)
    assert problem.reason == "BaseUnusable"
    assert "is an adapter and no whole model: set output.merge" in problem.message


def test_what_fits_is_proposed_with_its_sizes_and_memory(outcome: Any, base: Path, tmp_path: Path) -> None:
    """r (d + k) of the seven matrices of both layers (Hu et al. 2021), and the head of the three classes found."""
    texts = [{"text": f"number {number}", "label": number % 3} for number in range(9)]
    changes = {"task": "classification", "workers__resources": {"limits": {"memory": "2Gi"}}}
    proposal = outcome(base, write(tmp_path, *texts), **changes).proposal
    adapter = 2 * 8 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    assert proposal.parameters.trainable == adapter + 3 * 32
    memory = proposal.memory
    assert memory.available_bytes == 2 * 1024**3
    assert memory.optimizer_bytes == 8 * (adapter + 3 * 32)
    assert memory.total_bytes < memory.available_bytes
    packed = outcome(base, write(tmp_path, *[GOOD] * 9), data__packing=True).proposal
    assert packed.dataset.documents == 9
    assert 1 <= packed.dataset.rows < 9
