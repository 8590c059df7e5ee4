"""What a training engine is to the rest of the trainer: typed configuration, one step, save, load, export.

Every rank of a job holds one `Engine`. All methods are collective: every rank calls them in the same order.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from trireme_trainer.metrics.parts import PartClock

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


class EngineError(Exception):
    """Base of every error an engine raises on purpose."""


class EngineConfigError(EngineError):
    """The configuration cannot be trained; the message carries the field and the numbers."""


class CheckpointFormatError(EngineError):
    """A local checkpoint directory is incomplete, malformed or of another model."""


class NonFiniteState(EngineError):
    """A weight or a moment is not a finite number: nothing of it may be saved."""


@dataclass(frozen=True)
class ModelShape:
    """A Llama-family model under its Hugging Face field names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    head_dim: int | None = None
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    @property
    def attention_head_size(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class ParallelLayout:
    """Sizes of the axes; their product is the world size."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    context: int = 1

    @property
    def world_size(self) -> int:
        """Ranks of the layout."""
        return self.tensor * self.pipeline * self.data * self.context


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW; weight decay applies to matrices only, never to norms."""

    learning_rate: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_grad: float = 1.0
    """Global gradient-norm ceiling; 0 turns clipping off."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up, then the named decay to `min_learning_rate` at `total_steps`."""

    total_steps: int
    kind: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = 0
    min_learning_rate: float = 0.0


@dataclass(frozen=True)
class EngineConfig:
    """Everything an engine needs to build the model and train it."""

    model: ModelShape
    schedule: ScheduleConfig
    sequence_length: int
    global_batch_size: int
    """Sequences per step over all data-parallel ranks."""
    micro_batch_size: int = 1
    """Sequences per forward pass of one rank; global = micro x data x accumulation."""
    layout: ParallelLayout = field(default_factory=ParallelLayout)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    recompute: Literal["none", "full"] = "none"
    name: Literal["megatron"] = "megatron"


@dataclass(frozen=True)
class RankEnvironment:
    """Where this rank stands in the gang and whom it calls."""

    rank: int
    world_size: int
    local_rank: int
    master_address: str
    master_port: int
    device: Literal["cpu", "cuda"] = "cpu"
    collective_timeout_seconds: float = 600.0


@dataclass(frozen=True)
class TokenBatch:
    """The samples of one data-parallel rank for one step, the same on all its tensor and pipeline peers.

    `tokens`, `labels`: int64 `[samples, sequence_length]`; labels[i, t] is the token after tokens[i, t].
    `loss_mask` is float32 of that shape (None: every position counts). In training, samples is
    global_batch_size / data; in evaluation any positive number that is the same on every rank.
    """

    tokens: IntArray
    labels: IntArray
    loss_mask: FloatArray | None = None


MAX_VOTE = 3
"""Of what ranks can agree on with a step."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step; but for `skew_seconds` identical on every rank."""

    step: int
    """Steps completed after this one."""
    loss: float
    """Mean cross entropy in nats over the unmasked tokens of the global batch."""
    grad_norm: float
    """Global L2 norm before clipping."""
    learning_rate: float
    """Rate this step was taken with."""
    tokens: int
    """Positions of the global batch (samples x sequence_length)."""
    skipped: bool
    """True when weights and optimizer were left as they were."""
    found_nan: bool
    """True when the loss or the gradient norm was not finite."""
    agreed: int = 0
    """Largest vote of any rank."""
    skew_seconds: float | None = None
    """By how much longer than the mean of all ranks this one was busy in the newest step whose times were known."""


@dataclass(frozen=True)
class EvaluationResult:
    """Mean loss over the unmasked tokens of all batches of all ranks."""

    loss: float
    tokens: int


@dataclass(frozen=True)
class SaveResult:
    """What this rank wrote, relative to the directory, and how long training stood still for it."""

    step: int
    files: tuple[str, ...]
    bytes_written: int
    snapshot_seconds: float
    """Device to host copy and collective planning."""
    write_seconds: float
    """Local file writes, after the snapshot."""


@dataclass(frozen=True)
class LoadedState:
    """What a checkpoint held besides weights and optimizer."""

    step: int
    extra_state: Mapping[str, Any]
    """The JSON value given to `save_local`."""


@dataclass(frozen=True)
class ExportResult:
    """Files of the exported model written by this rank (rank 0 writes all; others: none)."""

    files: tuple[str, ...]
    parameters: int


class Engine(Protocol):
    """One rank of a training engine. Life: setup, [load_local], train_step..., close."""

    config: EngineConfig
    parts: PartClock
    """Times the steps; whoever makes them begins and ends each."""

    def setup(self) -> None:
        """Join the process group and build model and optimizer; raises EngineConfigError."""

    @property
    def step(self) -> int:
        """Completed optimizer steps."""

    @property
    def data_parallel_rank(self) -> int:
        """This rank's place on the data axis; it selects the samples."""

    @property
    def data_parallel_size(self) -> int:
        """Width of the data axis."""

    @property
    def adam_step(self) -> int:
        """Updates counted by Adam's bias correction; equals `step`."""

    @property
    def flops_per_token(self) -> float:
        """Forward plus backward operations of the model per trained token (trireme.planning.flops)."""

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""

    def train_step(self, batch: TokenBatch, vote: Callable[[], int] = lambda: 0) -> StepResult:
        """Forward, backward and one optimizer step on this data-parallel rank's samples.

        `vote` (0 to MAX_VOTE) is asked once, when the gradients are there. The votes travel with the loss: an
        agreement of its own after every step would keep a pipeline's stages from running on.
        """

    def evaluate(self, batches: Iterable[TokenBatch]) -> EvaluationResult:
        """Mean loss without training; every rank passes the same number of batches."""

    def save_local(self, directory: Path, extra_state: Mapping[str, Any]) -> SaveResult:
        """Write this rank's part of a checkpoint into a directory of its own node (created if missing).

        Ranks of one node may share the directory; nodes share nothing. The union of all ranks' files is the
        checkpoint. No file is a pickle. `extra_state` is a JSON value, the same on all ranks. Raises OSError when
        this node's disk fails, after the last collective: the caller may report the save as failed and train on.
        Raises NonFiniteState, also after the last collective and perhaps on one rank alone, and then writes nothing.
        """

    def load_local(self, directory: Path) -> LoadedState:
        """Restore weights, optimizer, schedule and step from a directory with all files of a checkpoint.

        The layout may differ from the one that saved. Raises CheckpointFormatError.
        """

    def start_from(self, directory: Path) -> None:
        """Before the first step: take the weights, and nothing else, of a checkpoint or of an exported model.

        Every rank reads a local directory with all files: a checkpoint's (index.json, any layout) or a Hugging Face
        LlamaForCausalLM's (config.json, safetensors). Raises CheckpointFormatError for another shape.
        """

    def export_hugging_face(self, directory: Path, tokenizer_directory: Path | None = None) -> ExportResult:
        """Write config.json, safetensors and tokenizer files that transformers loads; rank 0 writes."""

    def agree(self, flag: int) -> int:
        """Largest flag given by any rank: how ranks agree to stop or save at one step."""

    def barrier(self) -> None:
        """Wait for all ranks."""

    def close(self) -> None:
        """Leave the process group and free memory; safe to call twice."""


def preload_engine(name: str, device: Literal["cpu", "cuda"]) -> None:
    """Import what an engine needs, seconds of work, so that ranks forked from this process start at once.

    Opens no device and starts no thread: safe before a fork.
    """
    if name != "megatron":
        raise EngineConfigError(f"engine {name!r} is not available: megatron is the only one")
    _hush_known_warnings()
    if device == "cpu":
        from trireme_trainer.engines.megatron import cpu_bridge

        cpu_bridge.install()
    importlib.import_module("trireme_trainer.engines.megatron.engine")
    # torch's optimizers import it on their first call; here a forked rank has it already.
    importlib.import_module("torch._dynamo")


def _hush_known_warnings() -> None:
    """Keep out of every rank's log what Megatron-core warns of on each start and nobody can act on."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.core\.")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.")


def create_engine(config: EngineConfig, environment: RankEnvironment) -> Engine:
    """The engine named by the configuration; imports only that one. Raises EngineConfigError."""
    preload_engine(config.name, environment.device)
    from trireme_trainer.engines.megatron.engine import MegatronEngine

    return MegatronEngine(config, environment)
