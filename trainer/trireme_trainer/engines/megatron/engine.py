"""Megatron-core behind the engine interface: one rank's model, optimizer and step."""

from __future__ import annotations

import datetime
import gc
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from trireme.planning.flops import training_flops_per_token
from trireme_trainer.engines.interface import (
    EngineConfig,
    EngineConfigError,
    EngineError,
    EvaluationResult,
    ExportResult,
    LoadedState,
    RankEnvironment,
    SaveResult,
    StepResult,
    TokenBatch,
)
from trireme_trainer.engines.megatron import checkpointing, cpu_bridge, export, initial, starting
from trireme_trainer.engines.megatron.forward import LossTotals, MicroBatches, StepTotals, forward_step
from trireme_trainer.engines.megatron.model import build_model, check_config, wrap_data_parallel
from trireme_trainer.engines.megatron.optimizer import Optimizer
from trireme_trainer.engines.megatron.schedule import learning_rate
from trireme_trainer.metrics.parts import FORWARD_BACKWARD, OPTIMIZER, PartClock


class MegatronEngine:
    """`Engine` over Megatron-core; see the interface for what each method promises."""

    def __init__(self, config: EngineConfig, environment: RankEnvironment) -> None:
        check_config(config)
        if config.layout.world_size != environment.world_size:
            raise EngineConfigError(
                f"layout {config.layout} needs {config.layout.world_size} ranks, there are {environment.world_size}"
            )
        if environment.device == "cpu" and not cpu_bridge.installed():
            raise EngineError("a CPU rank needs the bridge before Megatron-core: make engines with create_engine")
        self.config = config
        self.environment = environment
        self._step = 0
        self._on_cpu = environment.device == "cpu"
        self.parts = PartClock(environment.device)

    def setup(self) -> None:
        """Join the gang, build this rank's part and fill it from the seed."""
        env, layout = self.environment, self.config.layout
        self.device = torch.device("cpu") if self._on_cpu else torch.device("cuda", env.local_rank)
        if not self._on_cpu:
            torch.cuda.set_device(self.device)
        dist.init_process_group(
            "gloo" if self._on_cpu else "nccl",
            init_method=f"tcp://{_bracketed(env.master_address)}:{env.master_port}",
            rank=env.rank,
            world_size=env.world_size,
            timeout=datetime.timedelta(seconds=env.collective_timeout_seconds),
            device_id=None if self._on_cpu else self.device,
        )
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tensor,
            pipeline_model_parallel_size=layout.pipeline,
            context_parallel_size=layout.context,
            distributed_timeout_minutes=max(1, math.ceil(env.collective_timeout_seconds / 60)),
        )
        if not self._on_cpu:
            model_parallel_cuda_manual_seed(self.config.seed)
        self.bare_model = build_model(self.config, self._on_cpu)
        self.bare_model.config.finalize_model_grads_func = self._finalize_gradients
        initial.fill(self.bare_model, self.config.model, self.config.seed)
        self.model = wrap_data_parallel(self.bare_model)
        self.optimizer = Optimizer(self.config, self.model)
        self._forward_backward = get_forward_backward_func()

    @property
    def step(self) -> int:
        """Completed optimizer steps."""
        return self._step

    @property
    def data_parallel_rank(self) -> int:
        """This rank's place on the data axis."""
        return int(parallel_state.get_data_parallel_rank())

    @property
    def data_parallel_size(self) -> int:
        """Width of the data axis."""
        return self.config.layout.data

    @property
    def adam_step(self) -> int:
        """Updates counted by Adam's bias correction; equals `step`."""
        return self.optimizer.adam_step

    @property
    def flops_per_token(self) -> float:
        """Forward plus backward operations per trained token."""
        return training_flops_per_token(self.config.model, self.config.sequence_length)

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, counted from what the ranks hold."""
        return checkpointing.count_parameters(self.bare_model)

    def train_step(self, batch: TokenBatch, vote: Callable[[], int] = lambda: 0) -> StepResult:
        """One step over the global batch; raises EngineConfigError for a batch of the wrong shape."""
        config = self.config
        expected = config.global_batch_size // config.layout.data
        if batch.tokens.shape != (expected, config.sequence_length):
            raise EngineConfigError(
                f"batch of shape {batch.tokens.shape}, this rank expects ({expected}, {config.sequence_length})"
            )
        self.model.zero_grad_buffer()
        known = self.parts.last
        with self.parts.part(FORWARD_BACKWARD, busy=True):
            losses = self._run(batch, config.micro_batch_size, forward_only=False)
        with self.parts.part(OPTIMIZER):
            grad_square = self.optimizer.grad_square()
        totals = StepTotals.over_all_ranks(losses, grad_square, vote(), known.busy if known else 0.0)
        rate = learning_rate(config.schedule, config.optimizer.learning_rate, self._step)
        applied = math.isfinite(totals.loss.mean) and math.isfinite(totals.grad_norm)
        if applied:
            with self.parts.part(OPTIMIZER):
                self.optimizer.step(rate, totals.grad_norm)
            self._step += 1
        return StepResult(
            step=self._step,
            loss=totals.loss.mean,
            grad_norm=totals.grad_norm,
            learning_rate=rate,
            tokens=config.global_batch_size * config.sequence_length,
            skipped=not applied,
            found_nan=not applied,
            agreed=totals.vote,
            skew_seconds=known.busy - totals.mean_busy if known else None,
        )

    @torch.no_grad()
    def evaluate(self, batches: Iterable[TokenBatch]) -> EvaluationResult:
        """Mean loss over all batches of all ranks, without gradients."""
        # Out of training Megatron-core recomputes nothing: with gradients on it would keep every activation.
        total = LossTotals(0.0, 0)
        self.model.eval()
        try:
            for batch in batches:
                micro = math.gcd(len(batch.tokens), self.config.micro_batch_size)
                parts = self._run(batch, micro, forward_only=True)
                total = total + LossTotals.over_all_ranks(parts, self.device)
        finally:
            self.model.train()
        return EvaluationResult(total.mean, total.tokens)

    def save_local(self, directory: Path, extra_state: Mapping[str, Any]) -> SaveResult:
        """Write this rank's shard file, and the index on rank 0."""
        return checkpointing.save(directory, self.config, self.bare_model, self.optimizer, self._step, extra_state)

    def load_local(self, directory: Path) -> LoadedState:
        """Restore from a directory that holds all files of a checkpoint."""
        loaded = checkpointing.load(directory, self.config, self.bare_model, self.optimizer)
        self._step = loaded.step
        return loaded

    def start_from(self, directory: Path) -> None:
        """Take the weights alone of a checkpoint or an exported model."""
        starting.fill_from(directory, self.config, self.bare_model)
        self.optimizer.adopt_model_parameters()

    def export_hugging_face(self, directory: Path, tokenizer_directory: Path | None = None) -> ExportResult:
        """Gather the weights on rank 0, which writes them as a LlamaForCausalLM."""
        return export.export_hugging_face(self.bare_model, self.config, directory, tokenizer_directory)

    def agree(self, flag: int) -> int:
        """Largest flag given by any rank."""
        value = torch.tensor([flag], dtype=torch.int64, device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return int(value.item())

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.agree(0)

    def close(self) -> None:
        """Drop the model and leave the process group."""
        for name in ("optimizer", "model", "bare_model"):
            self.__dict__.pop(name, None)
        gc.collect()
        if dist.is_initialized():
            parallel_state.destroy_model_parallel()
            dist.destroy_process_group()

    def _finalize_gradients(self, *arguments: Any, **how: Any) -> None:
        """What Megatron-core does after the last backward pass: the first wait for other data-parallel ranks."""
        with self.parts.part(FORWARD_BACKWARD):
            finalize_model_grads(*arguments, **how)

    def _run(self, batch: TokenBatch, micro_batch_size: int, forward_only: bool) -> list[torch.Tensor]:
        micro_batches = MicroBatches(batch, micro_batch_size, self.device)
        parts: list[torch.Tensor] = self._forward_backward(
            forward_step_func=forward_step,
            data_iterator=iter(micro_batches),
            model=[self.model],
            num_microbatches=len(micro_batches),
            seq_length=self.config.sequence_length,
            micro_batch_size=micro_batch_size,
            forward_only=forward_only,
        )
        return parts


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
