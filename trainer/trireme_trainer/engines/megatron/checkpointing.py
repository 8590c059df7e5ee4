"""Megatron-core's sharded state to and from a local checkpoint directory.

Megatron-core's dist_checkpointing says which box of which global tensor each rank holds and who of the replicas
writes it. Its own writers pickle metadata and need CUDA, so the bytes go through `checkpoint.sharded`.
What is stored is the fp32 weights and Adam's moments (12 bytes per parameter); the model's weights are their copies.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_inplace, nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedTensor,
    apply_factories,
    apply_factory_merges,
    is_main_replica,
)
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess, save_preprocess
from megatron.core.models.gpt import GPTModel

from trireme_trainer.checkpoint import sharded
from trireme_trainer.engines.interface import (
    CheckpointFormatError,
    EngineConfig,
    LoadedState,
    SaveResult,
)
from trireme_trainer.engines.megatron.optimizer import Optimizer
from trireme_trainer.engines.shapes import check_same_model

# Canonical state per parameter, gathered over data-parallel ranks through gloo: loads under any layout.
_OPTIMIZER_METADATA = {"distrib_optim_fully_reshardable_mem_efficient": True}


def save(
    directory: Path,
    config: EngineConfig,
    model: GPTModel,
    optimizer: Optimizer,
    step: int,
    extra_state: Mapping[str, Any],
) -> SaveResult:
    """Write this rank's chunks, and the index on rank 0."""
    began = time.monotonic()
    rank = dist.get_rank()
    file = sharded.shard_file(rank)
    chunks, tensors = _snapshot(model, optimizer, file)
    everyone: list[list[sharded.Chunk]] | None = [[]] * dist.get_world_size() if rank == 0 else None
    dist.gather_object(chunks, everyone)
    snapshot_done = time.monotonic()

    # From here on nothing is collective: a rank whose disk fails raises alone, and the gang can go on.
    directory.mkdir(parents=True, exist_ok=True)
    files, size = [], 0
    if tensors:
        size += sharded.write_shard(directory / file, tensors)
        files.append(file)
    if everyone is not None:
        state = _engine_state(config, optimizer, extra_state)
        index = sharded.build_index(step, len(everyone), state, (chunk for part in everyone for chunk in part))
        size += sharded.write_index(directory / sharded.INDEX_FILE, index)
        files.append(sharded.INDEX_FILE)
    return SaveResult(step, tuple(files), size, snapshot_done - began, time.monotonic() - snapshot_done)


def load(directory: Path, config: EngineConfig, model: GPTModel, optimizer: Optimizer) -> LoadedState:
    """Restore this rank's part of the state; raises CheckpointFormatError."""
    index = sharded.read_index(directory)
    state = index.state
    try:
        stored_model, adam_step, extra = state["model"], state["adamStep"], state["extra"]
    except KeyError as error:
        raise CheckpointFormatError(f"{directory / sharded.INDEX_FILE}: state lacks {error}") from None
    check_same_model(dataclasses.asdict(config.model), stored_model)
    request = optimizer_sharded_state(model, optimizer, loading=True)
    optimizer.forget_adam_step()
    with sharded.ShardReader(directory, index) as reader:
        optimizer.distributed.load_parameter_state_from_fully_reshardable(_ByParameter(reader, request))
    optimizer.set_adam_step(int(adam_step))
    optimizer.publish_main_parameters()
    return LoadedState(index.step, extra)


class _ByParameter:
    """The stored state by number of the parameter, read when asked for.

    Megatron-core asks for one parameter after the other, and only for those of which this rank updates a part.
    """

    def __init__(self, reader: sharded.ShardReader, request: Mapping[int, Any]) -> None:
        self._reader = reader
        self._request = request

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        request, _, factories = load_preprocess({"parameter": self._request[number]})
        loaded = dict_list_map_inplace(lambda shard: _read(self._reader, shard), request)
        state: dict[str, torch.Tensor] = apply_factory_merges(loaded, factories)["parameter"]
        return state


def optimizer_sharded_state(model: GPTModel, optimizer: Optimizer, loading: bool) -> dict[int, Any]:
    """fp32 weights and moments as ShardedTensors in model space; empty on all but one data-parallel rank on save."""
    # Data-parallel ranks that hand their part to the first one get None back.
    return (
        optimizer.distributed.sharded_param_state_fully_reshardable(
            model.sharded_state_dict(), loading, _OPTIMIZER_METADATA
        )
        or {}
    )


def count_parameters(model: GPTModel) -> int:
    """Parameters of the whole model: what each rank owns, summed; a tied output matrix counts once."""
    state = model.sharded_state_dict()
    apply_factories(state)
    owned = sum(shard.data.numel() for shard in _owned_shards(state) if isinstance(shard, ShardedTensor))
    total = torch.tensor([owned], dtype=torch.int64, device=next(model.parameters()).device)
    dist.all_reduce(total)
    return int(total.item())


def _snapshot(model: GPTModel, optimizer: Optimizer, file: str) -> tuple[list[sharded.Chunk], dict[str, torch.Tensor]]:
    state, common = save_preprocess({"optimizer": optimizer_sharded_state(model, optimizer, loading=False)})
    if any(True for _ in nested_values(common)):
        raise CheckpointFormatError(f"state outside sharded tensors: {common!r}")
    chunks, tensors = [], {}
    for shard in _owned_shards(state):
        lead = (1,) * shard.prepend_axis_num
        chunk = sharded.describe_chunk(
            shard.key, shard.data, shard.global_shape, shard.global_offset, lead + tuple(shard.local_shape), file
        )
        chunks.append(chunk)
        # The gathered state is a host copy of its own: slices of it are written as they lie there.
        tensors[chunk.name] = shard.data.detach().contiguous()
    return chunks, tensors


def _owned_shards(state: Any) -> Iterator[ShardedTensor]:
    for shard in nested_values(state):
        if is_main_replica(shard.replica_id):
            yield shard


def _read(reader: sharded.ShardReader, shard: ShardedTensor) -> torch.Tensor:
    lead = (1,) * shard.prepend_axis_num
    box = reader.read(shard.key, shard.global_shape, shard.global_offset, lead + tuple(shard.local_shape), shard.dtype)
    return box.view(tuple(shard.local_shape))


def _engine_state(config: EngineConfig, optimizer: Optimizer, extra_state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "engine": "megatron",
        "model": dataclasses.asdict(config.model),
        "layout": dataclasses.asdict(config.layout),
        "precision": config.precision,
        "adamStep": optimizer.adam_step,
        "extra": dict(extra_state),
    }
