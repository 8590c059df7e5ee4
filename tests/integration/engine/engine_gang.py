"""Runs gangs of engine ranks as forked processes and collects what they saw."""

from __future__ import annotations

import copy
import json
import os
import select
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

Layout = tuple[int, int, int]
Seen = list[dict[str, Any]]


def engine_config(**changes: Any) -> dict[str, Any]:
    """The common configuration with fields replaced and dictionaries merged."""
    merged = copy.deepcopy(CONFIG)
    for name, value in changes.items():
        merged[name] = merged[name] | value if isinstance(value, dict) else value
    return merged


class GangFailed(Exception):
    """A rank ended with another code than 0; the message carries their output."""


class Gangs:
    """A process that has imported the engine and forks the ranks of one gang after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._plans = 0
        self._process = subprocess.Popen(
            [sys.executable, str(RANK_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            process_group=0,
        )

    def close(self) -> None:
        """End the process and any rank it still has."""
        os.killpg(self._process.pid, 9)
        self._process.communicate()

    def run(
        self,
        layout: Layout,
        actions: list[dict[str, Any]],
        config: dict[str, Any] | None = None,
        timeout_seconds: float = 240,
    ) -> Seen:
        """What every rank of (tensor, pipeline, data) saw; raises GangFailed."""
        tensor, pipeline, data = layout
        name = f"plan-{self._plans}"
        self._plans += 1
        path = self.folder / f"{name}.json"
        plan = {
            "config": config or CONFIG,
            "layout": {"tensor": tensor, "pipeline": pipeline, "data": data},
            "port": _free_port(),
            "actions": actions,
        }
        path.write_text(json.dumps(plan))
        codes = self._exit_codes(path, timeout_seconds)
        if any(codes):
            logs = sorted(self.folder.glob(f"{name}.rank-*.log"))
            raise GangFailed(f"{codes}\n" + "\n".join(f"{log}:\n{log.read_text()[-3000:]}" for log in logs))
        return [json.loads((self.folder / f"{name}.seen.{rank}.json").read_text()) for rank in range(len(codes))]

    def _exit_codes(self, path: Path, timeout_seconds: float) -> list[int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_seconds)
        if not ready:
            raise TimeoutError(f"{path} gave no answer in {timeout_seconds} s")
        codes: list[int] = json.loads(self._process.stdout.readline())
        return codes


class TrainedRuns:
    """25 steps of the common configuration per layout, run once for all tests, saved after step 12."""

    steps = 25
    saved_step = 12

    def __init__(self, gangs: Gangs, folder: Path) -> None:
        self._gangs = gangs
        self._folder = folder
        self._runs: dict[Layout, Seen] = {}

    def of(self, layout: Layout) -> Seen:
        if layout not in self._runs:
            directory = self._folder / "-".join(map(str, layout))
            actions = [
                {"do": "train", "steps": self.saved_step},
                {"do": "save", "directory": str(directory)},
                {"do": "train", "steps": self.steps - self.saved_step},
            ]
            self._runs[layout] = self._gangs.run(layout, actions)
        return self._runs[layout]


def download(seen: Seen, into: Path) -> Path:
    """All ranks' files in one fresh directory, as a restore from the object store leaves them."""
    into.mkdir(parents=True)
    for rank in seen:
        for name in rank["saved"]["files"]:
            shutil.copyfile(Path(rank["saved"]["directory"]) / name, into / name)
    return into


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
