"""Measures one row in a process of its own: the engine and a bare loop in alternated blocks on one model."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from benchmarks.mfu.rows import ROWS

from trireme_trainer.engines.interface import EngineConfig, RankEnvironment, TokenBatch, preload_engine


@dataclass(frozen=True)
class Measurement:
    """Seconds per step of every timed step, by contender, and what it takes to read them."""

    row: str
    parameters: int
    tokens_per_step: int
    flops_per_token: float
    engine_seconds: list[float]
    bare_seconds: list[float]
    peak_memory_bytes: int
    first_loss: float
    last_loss: float


def measure(
    name: str, config: EngineConfig, device: Literal["cpu", "cuda"], blocks: int, steps: int, port: int
) -> Measurement:
    """Warm both loops up, then time `blocks` blocks of `steps` steps of each, one after the other."""
    preload_engine("megatron", device)
    from trireme_trainer.engines.megatron.engine import MegatronEngine

    engine = MegatronEngine(config, RankEnvironment(0, 1, 0, "127.0.0.1", port, device))
    engine.setup()
    batches = [random_batch(config, seed) for seed in range(4)]
    losses: list[float] = []

    def engine_step(number: int) -> None:
        losses.append(engine.train_step(batches[number % len(batches)]).loss)

    bare_step = bare_loop(engine, config, batches)
    seconds: dict[str, list[float]] = {"engine": [], "bare": []}
    contenders: list[tuple[str, Callable[[int], None]]] = [("engine", engine_step), ("bare", bare_step)]
    for _, step in contenders:
        _timed(step, 2, device)
    for _ in range(blocks):
        for contender, step in contenders:
            seconds[contender] += _timed(step, steps, device)
    return Measurement(
        row=name,
        parameters=engine.parameters,
        tokens_per_step=config.global_batch_size * config.sequence_length,
        flops_per_token=engine.flops_per_token,
        engine_seconds=seconds["engine"],
        bare_seconds=seconds["bare"],
        peak_memory_bytes=torch.cuda.max_memory_allocated() if device == "cuda" else 0,
        first_loss=losses[0],
        last_loss=losses[-1],
    )


def bare_loop(engine: Any, config: EngineConfig, batches: list[TokenBatch]) -> Callable[[int], None]:
    """The loop that one writes by hand over Megatron-core: its schedule, its optimizer step, nothing read back."""
    from megatron.core.pipeline_parallel import get_forward_backward_func

    model, optimizer = engine.model, engine.optimizer.distributed
    on_device = [
        tuple(torch.as_tensor(array).to(engine.device) for array in (batch.tokens, batch.labels)) for batch in batches
    ]
    positions = torch.arange(config.sequence_length, device=engine.device).expand(config.micro_batch_size, -1)
    forward_backward = get_forward_backward_func()
    micro_batches = config.global_batch_size // config.layout.data // config.micro_batch_size

    def forward(rows: Any, model_: Any) -> Any:
        tokens, labels = next(rows)
        losses = model_(tokens, positions, None, labels=labels)
        count = torch.tensor(losses.numel(), dtype=torch.int, device=losses.device)
        return losses, lambda output: (output.float().sum(), count, {})

    def step(number: int) -> None:
        tokens, labels = on_device[number % len(on_device)]
        pieces = (torch.split(whole, config.micro_batch_size) for whole in (tokens, labels))
        rows = zip(*pieces, strict=True)
        model.zero_grad_buffer()
        forward_backward(
            forward_step_func=forward,
            data_iterator=rows,
            model=[model],
            num_microbatches=micro_batches,
            seq_length=config.sequence_length,
            micro_batch_size=config.micro_batch_size,
            forward_only=False,
        )
        optimizer.step()

    return step


def _timed(step: Callable[[int], None], steps: int, device: str) -> list[float]:
    seconds = []
    for number in range(steps):
        began = _now(device)
        step(number)
        seconds.append(_now(device) - began)
    return seconds


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def random_batch(config: EngineConfig, seed: int) -> TokenBatch:
    shape = (config.global_batch_size // config.layout.data, config.sequence_length + 1)
    tokens = np.random.default_rng(seed).integers(0, config.model.vocab_size, size=shape, dtype=np.int64)
    return TokenBatch(tokens[:, :-1].copy(), tokens[:, 1:].copy())


def median_and_spread(seconds: list[float]) -> tuple[float, float]:
    """Median, and the range of the middle 80% over it."""
    ordered = sorted(seconds)
    cut = len(ordered) // 10
    inner = ordered[cut : len(ordered) - cut]
    middle = statistics.median(ordered)
    return middle, (inner[-1] - inner[0]) / middle


if __name__ == "__main__":
    row = ROWS[sys.argv[1]]
    result = measure(row.name, row.config(), "cuda", int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    print("MEASUREMENT " + json.dumps(asdict(result)), flush=True)
