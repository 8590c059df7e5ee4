"""A fine-tuning job as its agents see it: what it learns, what survives a lost rank, what comes out."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from finetune_harness import finish, losses, make_base, make_finetune_job, make_finetune_spec
from gang_harness import Gang, S3Server, wait_for
from transformers import AutoModelForCausalLM

from stdlib_examples import write_examples
from trireme.checkpoints import Manifest
from trireme.protocol import AgentState
from trireme.protocol.serving import AdapterSource, ModelSource
from trireme_serving.checks import check_adapter
from trireme_serving.errors import Unusable
from trireme_serving.safetensors_file import read_shapes


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("examples") / "train.jsonl"
    assert write_examples(path, "argparse.py", "string.py", "shutil.py", "textwrap.py") > 40
    return path


@pytest.mark.parametrize(
    ("method", "ranks", "zero"),
    [
        pytest.param("lora", 1, 0, id="lora", marks=pytest.mark.long),
        pytest.param("lora", 2, 0, id="lora on two"),
        pytest.param("full", 2, 2, id="full, ZeRO-2"),
        pytest.param("full", 2, 3, id="full, ZeRO-3", marks=pytest.mark.long),
    ],
)
def test_a_run_that_lost_a_rank_ends_as_one_that_did_not(
    make_gang: Callable[..., Gang], server: S3Server, base: Path, examples: Path, method: str, ranks: int, zero: int
) -> None:
    changes = {"method__type": method, "workers__devicesPerNode": ranks, "training__zeroStage": zero}
    spec = make_finetune_spec(base, examples, **changes)
    undisturbed = make_gang(config=make_finetune_job(server, spec, "undisturbed"))
    _, report = finish(undisturbed)
    assert report.progress.loss < report.progress.first_loss

    gang = make_gang(config=make_finetune_job(server, spec))
    gang.start_all()
    first = gang.form()
    wait_for(lambda: gang.agents[0].report().checkpoint.last_committed, 120, 0.02)
    os.kill(gang.agents[0].rank_pids()[-1], signal.SIGKILL)
    gang.wait_state(AgentState.FAILED, seconds=30)
    second = gang.form(dataset=first.proposal.dataset)
    assert 5 <= second.proposal.resume.step < 100
    ended = gang.wait_state(AgentState.SUCCEEDED)[0]
    gang.release()
    expected, found = losses(undisturbed), losses(gang)
    assert set(expected) == set(found) == set(range(1, 101))
    assert max(abs(expected[step] - found[step]) for step in expected) < 1e-4
    assert abs(ended.progress.loss - report.progress.loss) < 1e-4


def test_a_job_that_is_applied_again_exports_what_it_had_learned(
    make_gang: Callable[..., Gang], server: S3Server, base: Path, examples: Path
) -> None:
    changes = {"training__steps": 5, "method__type": "full"}
    spec = make_finetune_spec(base, examples, **changes)
    gangs = [make_gang(config=make_finetune_job(server, spec)) for _ in range(2)]
    models = []
    for gang in gangs:
        prepared, _ = finish(gang)
        models.append((gang.job_directory / "model" / "a1" / "model.safetensors").read_bytes())
    assert prepared.proposal.resume.step == 5
    assert models[0] == models[1]
    shorter = make_gang(
        config=make_finetune_job(server, make_finetune_spec(base, examples, **{**changes, "training__steps": 4}))
    )
    shorter.start_all()
    shorter.hold()
    problem = shorter.prepare().inputs_problem
    assert problem.reason == "CheckpointOfOtherTraining"
    assert "it is of step 5, this job's run has 4 steps" in problem.message


def test_what_comes_out_of_lora_is_the_adapter_and_the_merged_model(
    make_gang: Callable[..., Gang], server: S3Server, base: Path, examples: Path
) -> None:
    spec = make_finetune_spec(base, examples, output__merge=True, method__lora__rank=4)
    gang = make_gang(config=make_finetune_job(server, spec))
    first, report = finish(gang)
    place = gang.job_directory / "model" / "a1"
    manifest = Manifest.decode((place / "manifest.json").read_bytes())
    assert manifest.digest == report.model.digest
    names = {f.path for f in manifest.files}
    assert {"config.json", "model.safetensors", "tokenizer.json", "adapter/adapter_model.safetensors"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".md"))]
    _can_be_served(place, base, manifest)
    plain = AutoModelForCausalLM.from_pretrained(base)
    merged = AutoModelForCausalLM.from_pretrained(place)
    tokens = torch.arange(24)[None]
    with torch.no_grad():
        before = plain(tokens).logits
        apart = peft.PeftModel.from_pretrained(plain, place / "adapter")(tokens).logits
        assert (merged(tokens).logits - apart).abs().max() < 1e-4
        assert (apart - before).abs().max() > 0.01
    # r (d_in + d_out) for each of q, k, v, o, gate, up, down (Hu et al. 2021, section 4.1).
    per_layer = 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    sizes = first.proposal.parameters
    assert sizes.trainable == 2 * per_layer
    assert sizes.total == sizes.trainable + sum(p.numel() for p in merged.parameters())


def _can_be_served(export: Path, base: Path, manifest: Manifest) -> None:
    """An InferenceService takes the adapter for this base, and for no other."""
    recorded = manifest.state["base"]
    assert recorded == {"uri": str(base), "digest": None}
    shapes, adapter = read_shapes(base / "model.safetensors"), AdapterSource(name="a", id="1", uri=str(export))
    assert check_adapter(export, adapter, ModelSource(uri=str(base)), recorded, shapes, 8).rank == 4
    with pytest.raises(Unusable, match="trained on"):
        check_adapter(export, adapter, ModelSource(uri="s3://models/other"), recorded, shapes, 8)


@pytest.mark.long
@pytest.mark.parametrize(
    "method",
    [
        {"type": "prefix", "virtualTokens": 4},
        {"type": "promptTuning", "virtualTokens": 4},
        {"type": "pTuning", "virtualTokens": 4},
        {"type": "peft", "peft": {"peft_type": "IA3"}},
        {"type": "peft", "peft": {"peft_type": "LOHA", "r": 4, "target_modules": ["q_proj", "v_proj"]}},
    ],
    ids=["prefix", "prompt tuning", "p-tuning", "IA3", "LoHa"],
)
def test_every_method_learns_is_validated_resumes_and_comes_out_as_an_adapter(
    make_gang: Callable[..., Gang], server: S3Server, base: Path, examples: Path, method: dict[str, Any]
) -> None:
    # Virtual tokens take positions of the base's 512.
    changes = {
        "method": method,
        "training__steps": 20,
        "data__validation": {"fraction": 0.2},
        "data__sequenceLength": 508,
    }
    gang = make_gang(config=make_finetune_job(server, make_finetune_spec(base, examples, **changes)))
    _, report = finish(gang)
    assert report.progress.validation_loss is not None
    assert losses(gang)[20] != losses(gang)[1]
    plain = AutoModelForCausalLM.from_pretrained(base)
    tokens = torch.arange(24)[None]
    with torch.no_grad():
        before = plain(tokens).logits
        taught = peft.PeftModel.from_pretrained(plain, gang.job_directory / "model" / "a1")
        # Virtual tokens stand before the others.
        assert (taught(tokens).logits[:, -24:] - before).abs().max() > 1e-4
    # A longer run of the same name goes on from the first one's checkpoint.
    longer = make_finetune_spec(base, examples, **{**changes, "training__steps": 25})
    again = make_gang(config=make_finetune_job(server, longer))
    prepared, report = finish(again)
    assert prepared.proposal.resume.step == 20
    assert report.progress.step == 25
