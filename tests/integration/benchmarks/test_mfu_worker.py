from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """
import json, socket
from dataclasses import asdict
from trireme_trainer.engines.interface import EngineConfig, ModelShape, ScheduleConfig
from benchmarks.mfu.worker import measure
model = ModelShape(64, 32, 64, 2, 4, 2, 16)
config = EngineConfig(model, ScheduleConfig(10), sequence_length=16, global_batch_size=4, micro_batch_size=2)
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
print(json.dumps(asdict(measure("tiny", config, "cpu", 2, 2, port))))
"""


def _python(*arguments: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_both_loops_train_the_same_model_in_alternated_blocks() -> None:
    seen = json.loads(_python("-c", PROGRAM).splitlines()[-1])
    assert len(seen["engine_seconds"]) == len(seen["bare_seconds"]) == 4
    assert seen["tokens_per_step"] == 64
    assert seen["parameters"] == 2 * 64 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32
    assert seen["last_loss"] < seen["first_loss"]


def test_without_a_cuda_device_one_line_says_so() -> None:
    output = _python("-m", "benchmarks.mfu")
    assert len(output.splitlines()) == 1
    assert "needs a CUDA device" in output
