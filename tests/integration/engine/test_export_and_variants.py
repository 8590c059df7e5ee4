from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from engine_gang import Gangs, TrainedRuns, engine_config
from engine_rank import batch_of, build_config

TIED_BF16 = engine_config(model={"tie_word_embeddings": True}, precision="bf16", recompute="full")


def _hugging_face_loss(directory: Path, plan: dict[str, object]) -> float:
    """Mean loss of the exported model on the engine's evaluation batches, computed by transformers alone."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)
    config = build_config(plan)
    total, tokens = 0.0, 0.0
    for i in range(2):
        batch = batch_of(config, 5000 + i, 0)
        assert batch.loss_mask is not None
        with torch.no_grad():
            logits = model(torch.as_tensor(batch.tokens)).logits.numpy().astype(np.float64)
        shifted = logits - logits.max(-1, keepdims=True)
        log_probability = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        losses = -np.take_along_axis(log_probability, batch.labels[..., None], -1)[..., 0]
        total += float((losses * batch.loss_mask).sum())
        tokens += float(batch.loss_mask.sum())
    return total / tokens


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_exported_model_is_the_trained_one(gangs: Gangs, tmp_path: Path, tied: bool) -> None:
    config = engine_config(model={"tie_word_embeddings": tied})
    actions = [
        {"do": "train", "steps": 3},
        {"do": "evaluate"},
        {"do": "logits"},
        {"do": "export", "directory": str(tmp_path / "model")},
    ]
    seen = gangs.run((2, 2, 1), actions, config)
    assert seen[0]["exported"]["parameters"] == seen[0]["parameters"]
    assert all(rank["exported"]["files"] == [] for rank in seen[1:])
    layout = {"tensor": 1, "pipeline": 1, "data": 1}
    loss = _hugging_face_loss(tmp_path / "model", {"config": config, "layout": layout})
    assert loss == pytest.approx(seen[0]["evaluation"]["loss"], abs=1e-5)

    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    tokens = batch_of(build_config({"config": config, "layout": layout}), 5000, 0).tokens[:2]
    with torch.no_grad():
        expected = model(torch.as_tensor(tokens)).logits.numpy()
    assert np.abs(np.array(seen[-1]["logits"]) - expected).max() < 1e-4


def test_bf16_with_recomputation_and_tied_embeddings_trains_and_resumes(gangs: Gangs, tmp_path: Path) -> None:
    actions: list[dict[str, object]] = [
        {"do": "train", "steps": 4},
        {"do": "save", "directory": str(tmp_path / "s")},
        {"do": "evaluate"},
        {"do": "train", "steps": 3},
    ]
    seen = gangs.run((1, 2, 1), actions, TIED_BF16)
    resumed = gangs.run(
        (1, 2, 1),
        [{"do": "load", "directory": str(tmp_path / "s" / "node-0")}, {"do": "train", "steps": 3}],
        TIED_BF16,
    )
    assert seen[0]["steps"][-1]["loss"] < seen[0]["steps"][0]["loss"]
    assert [s["loss"] for s in resumed[0]["steps"]] == [s["loss"] for s in seen[0]["steps"][4:]]
    for rank in seen:
        graphs = rank["evaluation"]["graphs"]
        assert graphs, "no forward pass was seen"
        assert not any(graphs), "an evaluation that builds a graph keeps every activation"


def test_a_loss_that_is_not_finite_changes_nothing(gangs: Gangs, trained: TrainedRuns) -> None:
    seen = gangs.run((1, 2, 1), [{"do": "train", "steps": 3, "poison_step": 2}, {"do": "train", "steps": 1}])
    *before, poisoned, after = seen[0]["steps"]
    assert [step["step"] for step in before] == [1, 2]
    assert math.isnan(poisoned["loss"])
    assert poisoned["skipped"]
    assert poisoned["step"] == poisoned["adam_step"] == 2
    assert after["loss"] == pytest.approx(trained.of((1, 1, 1))[0]["steps"][2]["loss"], abs=1e-4)
