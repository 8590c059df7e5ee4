"""The process group of ranks that Hugging Face's libraries train in, and what a run asks of it."""

from __future__ import annotations

import os
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist

from trireme_trainer.engines.interface import MAX_VOTE, RankEnvironment


class GroupRanks:
    """All ranks of the attempt."""

    def __init__(self, environment: RankEnvironment) -> None:
        """Join the group."""
        self.device = torch.device("cpu")
        if environment.device == "cuda":
            self.device = torch.device("cuda", environment.local_rank)
            torch.cuda.set_device(self.device)
        dist.init_process_group(
            "gloo" if environment.device == "cpu" else "nccl",
            init_method=f"tcp://{environment.master_address}:{environment.master_port}",
            rank=environment.rank,
            world_size=environment.world_size,
            timeout=timedelta(seconds=environment.collective_timeout_seconds),
        )
        self._alone = environment.world_size == 1

    def agree(self, flag: int) -> int:
        """Largest flag given by any rank."""
        if self._alone:
            return flag
        flags = torch.tensor([flag], device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return int(flags)

    def agree_and_average(self, flag: int, number: float) -> tuple[int, float]:
        """Largest flag (0 to MAX_VOTE) given by any rank, and the mean of a number that each has: one collective."""
        flags = [0.0] * (MAX_VOTE + 1)
        flags[flag] = 1.0
        numbers, *counts = self.total(number, *flags)
        return max(value for value, count in enumerate(counts) if count), numbers / sum(counts)

    def total(self, *numbers: float) -> list[float]:
        """Sums over all ranks."""
        sums = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        if not self._alone:
            dist.all_reduce(sums)
        return list(sums.tolist())  # all at once: each number alone would be waited for

    def barrier(self) -> None:
        """Wait for all ranks."""
        if not self._alone:
            dist.barrier()

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()


def start_deepspeed(device: str) -> None:
    """Have DeepSpeed use the process group that is there."""
    if device == "cpu":
        # Read when it is imported. Its shared-memory collectives would be compiled on first use; gloo's serve.
        os.environ["DS_ACCELERATOR"] = "cpu"
        # Not by `import ... as`: the package has torch itself under this module's name.
        backend: Any = import_module("deepspeed.comm.torch")
        backend.build_shm_op = lambda: None
    import deepspeed

    deepspeed.init_distributed("gloo" if device == "cpu" else "nccl", auto_mpi_discovery=False)


def zero_config(
    stage: int, *, micro: int, accumulation: int, world_size: int, clip: float, bf16: bool
) -> dict[str, Any]:
    """DeepSpeed's configuration of a ZeRO stage; the optimizer is torch's AdamW, made by the trainer."""
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro * accumulation * world_size,
        "gradient_clipping": clip,
        "bf16": {"enabled": bf16},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
