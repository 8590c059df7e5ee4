"""Runs in processes of their own: the bridge changes torch for the whole process."""

from __future__ import annotations

import os
import subprocess
import sys


def _run(program: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_the_bridge_answers_for_the_device_and_takes_everything_back() -> None:
    _run(
        """
import torch
originals = (torch.zeros, torch.Tensor.type, torch.Tensor.cuda, torch.cuda.current_device, torch.compile)
from trireme_trainer.engines.megatron import cpu_bridge
cpu_bridge.install()
cpu_bridge.install()
assert torch.zeros(2, device="cuda").device.type == "cpu"
assert torch.zeros(2, device=torch.device("cuda", 0)).device.type == "cpu"
assert torch.empty(2, device=torch.cuda.current_device()).device.type == "cpu"
assert torch.zeros(2).type() == "torch.cuda.FloatTensor"
assert torch.zeros(2, dtype=torch.bfloat16).type() == "torch.cuda.BFloat16Tensor"
assert torch.zeros(2).type(torch.float64).dtype == torch.float64
assert torch.ones(1).cuda().item() == 1.0
assert torch.compile is originals[-1]
cpu_bridge.uninstall()
assert not cpu_bridge.installed()
assert originals == (
    torch.zeros, torch.Tensor.type, torch.Tensor.cuda, torch.cuda.current_device, torch.compile
)
assert torch.zeros(2).type() == "torch.FloatTensor"
"""
    )


def test_a_rank_starts_without_the_inductor_and_without_transformers() -> None:
    loaded = _run(
        """
import sys
from trireme_trainer.engines.interface import preload_engine
preload_engine("megatron", "cpu")
print([name for name in ("torch._inductor.compile_fx", "transformers", "transformer_engine") if name in sys.modules])
"""
    )
    assert loaded.strip() == "[]"
