"""Tokens per second, model FLOP/s per device, and their share of the hardware's peak (MFU)."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from trireme.planning.hardware import HARDWARE

WINDOW_STEPS = 20
MATMUL_SIZE = 512
MATMUL_SECONDS = 0.3


@dataclass(frozen=True)
class Peak:
    """What a device could do at best."""

    tflops: float
    basis: str
    """Entry of the hardware table, or 'measured-cpu'."""


@dataclass(frozen=True)
class Rates:
    """Of the last WINDOW_STEPS steps; time spent on checkpoints and validation does not count."""

    tokens_per_second: float
    tflops_per_device: float
    mfu: float | None
    mfu_basis: str | None


class Throughput:
    """Rates over a window of steps. MFU: Chowdhery et al. 2022 (PaLM), appendix B."""

    def __init__(self, flops_per_token: float, tokens_per_step: int, world_size: int, peak: Peak | None) -> None:
        self._flops_per_token = flops_per_token
        self._tokens_per_step = tokens_per_step
        self._world_size = world_size
        self._peak = peak
        self._seconds: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._tokens: deque[int] = deque(maxlen=WINDOW_STEPS)

    def step(self, seconds: float, tokens_of_step: int | None = None) -> Rates:
        """The rates after a step of this duration; its tokens where steps differ in them."""
        self._seconds.append(seconds)
        self._tokens.append(self._tokens_per_step if tokens_of_step is None else tokens_of_step)
        tokens = sum(self._tokens) / max(1e-9, sum(self._seconds))
        tflops = tokens * self._flops_per_token / self._world_size / 1e12
        peak = self._peak
        return Rates(tokens, tflops, tflops / peak.tflops if peak else None, peak.basis if peak else None)


def device_peak(accelerator: str, precision: str) -> Peak | None:
    """The hardware table's peak rate; None where it is not in the table."""
    tflops = HARDWARE[accelerator].peak_tflops(precision) if accelerator in HARDWARE else None
    return Peak(tflops, accelerator) if tflops else None


def measure_cpu_peak(precision: str) -> Peak:
    """Mean matrix-product rate of all ranks while all of them run one; collective over an initialised gloo group."""
    import torch
    import torch.distributed as dist

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left = torch.randn(MATMUL_SIZE, MATMUL_SIZE, dtype=dtype)
    right = torch.randn(MATMUL_SIZE, MATMUL_SIZE, dtype=dtype)
    torch.mm(left, right)
    dist.barrier()
    began, products = time.monotonic(), 0
    while time.monotonic() - began < MATMUL_SECONDS:
        torch.mm(left, right)
        products += 1
    rate = torch.tensor([2.0 * MATMUL_SIZE**3 * products / (time.monotonic() - began)], dtype=torch.float64)
    dist.all_reduce(rate)
    return Peak(float(rate) / dist.get_world_size() / 1e12, "measured-cpu")
