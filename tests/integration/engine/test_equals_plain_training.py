from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_gang import Gangs, engine_config
from engine_rank import batch_of, build_config

STEPS = 10


def plain_training(directory: Path, plan: dict[str, Any]) -> list[dict[str, float]]:
    """Loss, gradient norm and learning rate of a loop over transformers and torch.optim alone."""
    import torch
    from transformers import LlamaForCausalLM

    config = build_config(plan)
    settings, schedule = config.optimizer, config.schedule
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
    )
    seen = []
    for step in range(STEPS):
        batch = batch_of(config, step, 0)
        assert batch.loss_mask is not None
        logits = model(torch.as_tensor(batch.tokens)).logits.flatten(0, 1)
        losses = torch.nn.functional.cross_entropy(logits, torch.as_tensor(batch.labels).flatten(), reduction="none")
        mask = torch.as_tensor(batch.loss_mask).flatten()
        loss = (losses * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
        warmup = schedule.warmup_steps
        done = max(0.0, (step + 1 - warmup) / (schedule.total_steps - warmup))
        span = settings.learning_rate - schedule.min_learning_rate
        rate = schedule.min_learning_rate + span * 0.5 * (1.0 + np.cos(np.pi * done))
        rate = min(rate, settings.learning_rate * (step + 1) / warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        seen.append({"loss": loss.item(), "grad_norm": norm.item(), "learning_rate": float(rate)})
    return seen


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_every_step_equals_plain_training_with_transformers(gangs: Gangs, tmp_path: Path, tied: bool) -> None:
    config = engine_config(model={"tie_word_embeddings": tied})
    layout = (1, 1, 1) if tied else (2, 2, 1)
    seen = gangs.run(
        layout, [{"do": "export", "directory": str(tmp_path / "model")}, {"do": "train", "steps": STEPS}], config
    )
    expected = plain_training(tmp_path / "model", {"config": config, "layout": {"tensor": 1, "pipeline": 1, "data": 1}})
    for mine, plain in zip(seen[0]["steps"], expected, strict=True):
        assert mine["learning_rate"] == pytest.approx(plain["learning_rate"], rel=1e-9), mine["step"]
        assert mine["loss"] == pytest.approx(plain["loss"], abs=1e-5), mine["step"]
        assert mine["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4), mine["step"]
