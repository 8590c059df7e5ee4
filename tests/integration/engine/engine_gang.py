"""Starts the ranks of an engine under test as processes of their own and collects what they saw."""

from __future__ import annotations

import copy
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

RANK_PROGRAM = Path(__file__).with_name("engine_rank.py")

CONFIG: dict[str, Any] = {
    "model": {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
    "schedule": {"total_steps": 25, "warmup_steps": 5, "kind": "cosine", "min_learning_rate": 1e-4},
    "optimizer": {"learning_rate": 3e-3, "weight_decay": 0.1, "clip_grad": 0.5},
    "sequence_length": 32,
    "global_batch_size": 8,
    "micro_batch_size": 2,
    "precision": "fp32",
    "seed": 7,
}


def config(**changes: Any) -> dict[str, Any]:
    """The common configuration with top-level fields replaced and dictionaries merged."""
    merged = copy.deepcopy(CONFIG)
    for name, value in changes.items():
        if isinstance(value, dict):
            merged[name].update(value)
        else:
            merged[name] = value
    return merged


def run_gang(
    folder: Path,
    layout: tuple[int, int, int],
    actions: list[dict[str, Any]],
    engine_config: dict[str, Any] | None = None,
    timeout_seconds: float = 200,
) -> list[dict[str, Any]]:
    """What every rank of (tensor, pipeline, data) saw; raises AssertionError with their output if one failed."""
    tensor, pipeline, data = layout
    number = len(list(folder.glob("plan-*.json")))
    plan_path = folder / f"plan-{number}.json"
    plan = {
        "config": engine_config or CONFIG,
        "layout": {"tensor": tensor, "pipeline": pipeline, "data": data},
        "port": _free_port(),
        "actions": actions,
    }
    plan_path.write_text(json.dumps(plan))
    world_size = tensor * pipeline * data
    logs = [folder / f"plan-{number}.rank-{rank}.log" for rank in range(world_size)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANK_PROGRAM), str(plan_path), str(rank)],
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            env=environment,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout_seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(codes):
        raise AssertionError(f"exit codes {codes}\n" + "\n".join(log.read_text()[-3000:] for log in logs))
    return [json.loads((folder / f"plan-{number}.seen.{rank}.json").read_text()) for rank in range(world_size)]


def download(seen: list[dict[str, Any]], into: Path) -> Path:
    """All ranks' files in one fresh directory, as a restore from the object store leaves them."""
    into.mkdir()
    for rank in seen:
        for name in rank["saved"]["files"]:
            shutil.copyfile(Path(rank["saved"]["directory"]) / name, into / name)
    return into


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
