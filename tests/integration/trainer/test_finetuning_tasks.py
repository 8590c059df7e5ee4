"""Packed examples and classifiers, as a job's agents see them."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from finetune_harness import make_base, make_finetune_job, make_finetune_spec
from gang_harness import BUCKET, Gang, S3Server, wait_for
from safetensors.torch import load_file
from test_finetuning import finish, losses
from transformers import AutoModelForSequenceClassification

from stdlib_examples import functions, write_examples
from trireme.checkpoints import parse_s3_uri
from trireme.protocol import AgentState, Phase, Target
from trireme_trainer.finetune.prepare import prepare
from trireme_trainer.hf.data import ExampleDataset
from trireme_trainer.hf.state import StoredTensors

CLASSES = ["function", "method"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Signatures of functions and of methods, which have self."""
    path = tmp_path_factory.mktemp("texts") / "train.jsonl"
    found = [
        signature for signature, _ in functions("argparse.py", "string.py", "shutil.py", "tarfile.py", "inspect.py")
    ]
    lines = [{"text": text, "label": CLASSES["(self" in text]} for text in found]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_packed_rows_train_as_their_examples_apart(
    make_gang: Callable[..., Gang], server: S3Server, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All examples in every step, so that both runs train the same ones: the losses agree within 1e-4 in float32."""
    examples = tmp_path / "train.jsonl"
    write_examples(examples, "argparse.py", "string.py", "shutil.py", "textwrap.py")
    lines = sorted(examples.read_text().splitlines(), key=len)[:16]
    examples.write_text("\n".join(lines) + "\n")
    changes: dict[str, Any] = {"training__steps": 12, "data__validation": {"sources": [{"uri": str(examples)}]}}
    held = tmp_path / "held.jsonl"
    held.write_text("\n".join(lines[:6]) + "\n")
    changes["data__validation"] = {"sources": [{"uri": str(held)}]}

    apart = make_finetune_spec(base, examples, training__globalBatchSize=16, **changes)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    asked = make_finetune_job(server, make_finetune_spec(base, examples, data__packing=True, **changes), "asked")
    target = Target(job_uid=asked.job.uid, attempt=1, phase=Phase.PREPARE)
    rows = prepare(asked, target, tmp_path / "scratch").proposal.dataset.rows
    assert 1 < rows < 16
    packed = make_finetune_spec(base, examples, data__packing=True, training__globalBatchSize=rows, **changes)

    found, validation = [], []
    for number, spec in enumerate((apart, packed)):
        gang = make_gang(config=make_finetune_job(server, spec, f"job-{number}"))
        prepared, report = finish(gang)
        found.append(losses(gang))
        validation.append(report.progress.validation_loss)
        assert prepared.proposal.dataset.documents == 16
        assert report.progress.tokens == 12 * prepared.proposal.dataset.tokens
    assert set(found[0]) == set(found[1]) == set(range(1, 13))
    assert max(abs(found[0][step] - found[1][step]) for step in found[0]) < 1e-4
    assert abs(validation[0] - validation[1]) < 1e-4
    assert found[1][12] < found[1][1]


@pytest.mark.parametrize(
    "method",
    [
        {"type": "lora", "lora": {"rank": 4}},
        pytest.param({"type": "full"}, marks=pytest.mark.long),
        pytest.param({"type": "prefix", "virtualTokens": 4}, marks=pytest.mark.long),
    ],
    ids=["lora", "full", "prefix"],
)
def test_a_classifier_learns_and_what_comes_out_names_the_classes(
    make_gang: Callable[..., Gang], server: S3Server, base: Path, texts: Path, method: dict[str, Any]
) -> None:
    changes = {
        "task": "classification",
        "method": method,
        "data__validation": {"fraction": 0.3},
        "training__globalBatchSize": 16,
        "training__steps": 60,
        "data__sequenceLength": 256,
    }
    gang = make_gang(config=make_finetune_job(server, make_finetune_spec(base, texts, **changes)))
    prepared, report = finish(gang)
    dataset = server.bucket / parse_s3_uri(prepared.proposal.dataset.uri)[1]
    held = ExampleDataset(dataset, 0, 1).validation.dataset
    labels = torch.tensor([row["labels"] for row in held])
    majority = float(labels.bincount().max() / len(labels))
    accuracy = report.progress.metrics["validation/accuracy"]
    # Four prefixes move a base that has learned nothing but a little.
    assert accuracy > majority + (0.0 if method["type"] == "prefix" else 0.05)
    assert report.progress.loss < report.progress.first_loss

    place = gang.job_directory / "model" / "a1"
    if method["type"] == "full":
        model = AutoModelForSequenceClassification.from_pretrained(place)
        assert model.config.id2label == dict(enumerate(CLASSES))
    else:
        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
        model = peft.PeftModel.from_pretrained(plain, place)
        assert json.loads((place / "classes.json").read_text()) == CLASSES
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(torch.tensor([row["input_ids"]])).logits for row in held])
    assert abs(float((logits.argmax(-1) == labels).float().mean()) - accuracy) < 1e-6
    loss = float(torch.nn.functional.cross_entropy(logits, labels))
    assert abs(loss - report.progress.validation_loss) < 1e-4


@pytest.mark.long
def test_a_classifier_that_lost_a_rank_ends_as_one_that_did_not(
    make_gang: Callable[..., Gang], server: S3Server, base: Path, texts: Path
) -> None:
    changes = {"task": "classification", "data__labels": CLASSES[::-1], "output__merge": True}
    spec = make_finetune_spec(base, texts, workers__devicesPerNode=2, **changes)
    undisturbed = make_gang(config=make_finetune_job(server, spec, "undisturbed"))
    finish(undisturbed)
    gang = make_gang(config=make_finetune_job(server, spec))
    gang.start_all()
    first = gang.form()
    wait_for(lambda: gang.agents[0].report().checkpoint.last_committed, 120, 0.02)
    os.kill(gang.agents[0].rank_pids()[-1], signal.SIGKILL)
    gang.wait_state(AgentState.FAILED, seconds=30)
    gang.form(dataset=first.proposal.dataset)
    gang.wait_state(AgentState.SUCCEEDED)
    gang.release()
    expected, found = losses(undisturbed), losses(gang)
    assert set(expected) == set(found) == set(range(1, 101))
    assert max(abs(expected[step] - found[step]) for step in expected) < 1e-4
    merged = AutoModelForSequenceClassification.from_pretrained(gang.job_directory / "model" / "a2")
    assert merged.config.id2label == dict(enumerate(CLASSES[::-1]))


@pytest.mark.long
@pytest.mark.parametrize(("method", "ranks", "zero"), [("lora", 1, 0), ("full", 2, 2)], ids=["lora", "full, ZeRO-2"])
def test_a_run_that_no_longer_improves_stops_and_exports_its_best_weights(
    make_gang: Callable[..., Gang], server: S3Server, base: Path, tmp_path: Path, method: str, ranks: int, zero: int
) -> None:
    """Trained on few examples and validated on others, it learns by heart. Resumed from a checkpoint, it ends alike."""
    examples, held = tmp_path / "train.jsonl", tmp_path / "held.jsonl"
    write_examples(examples, "shutil.py")
    write_examples(held, "argparse.py", "tarfile.py")
    examples.write_text("\n".join(examples.read_text().splitlines()[:8]))
    changes = {
        "method__type": method,
        "workers__devicesPerNode": ranks,
        "training__zeroStage": zero,
        "training__steps": 400,
        "training__validationIntervalSteps": 10,
        "training__earlyStopping": {"patience": 3},
        "training__optimizer": {"learningRate": 0.02},
        "data__validation": {"sources": [{"uri": str(held)}]},
    }
    spec = make_finetune_spec(base, examples, **changes)
    gang = make_gang(config=make_finetune_job(server, spec))
    _, report = finish(gang)
    progress = report.progress
    best = int(progress.metrics["best/step"])
    assert progress.step == progress.total_steps == best + 30 < 400
    assert progress.metrics["best/loss"] < progress.validation_loss

    # Applied again it has nothing left to do, and exports the same: the best weights are in the checkpoint.
    place = gang.job_directory / "model" / "a1"
    again = make_gang(config=make_finetune_job(server, spec))
    prepared, second = finish(again)
    assert prepared.proposal.resume.step == progress.step
    assert second.progress.step == progress.step
    name = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    assert (again.job_directory / "model" / "a1" / name).read_bytes() == (place / name).read_bytes()
    weights = load_file(place / name)
    last = StoredTensors(sorted(gang.job_directory.glob("a1/step-*"), key=lambda p: int(p.name[5:]))[-1])
    kept, current = last.part("best"), last.part("weight")
    assert set(kept) == set(current)
    assert any(not torch.equal(kept[key], current[key]) for key in kept)
    exported = {key.replace(".default", ""): tensor for key, tensor in kept.items()}
    assert {key: exported[key].shape for key in weights} == {key: weights[key].shape for key in weights}
    assert all(torch.equal(exported[key], weights[key]) for key in weights)


@pytest.mark.long
def test_a_corrupt_weight_file_in_the_store_fails_the_run_by_its_name(
    make_gang: Callable[..., Gang], server: S3Server, base: Path, tmp_path: Path
) -> None:
    """Without a manifest nobody knows its digest: the first who reads it finds out."""
    broken = server.bucket / "models" / "broken"
    shutil.copytree(base, broken)
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    server.settle()
    examples = tmp_path / "train.jsonl"
    write_examples(examples, "shutil.py")
    spec = make_finetune_spec(base, examples, base__uri=f"s3://{BUCKET}/models/broken")
    gang = make_gang(config=make_finetune_job(server, spec))
    gang.start_all()
    gang.form()
    failure = gang.wait_state(AgentState.FAILED)[0].failure
    assert failure is not None
    assert "model.safetensors is corrupt" in failure.message
