"""First weights from the seed and the parameter's name alone, so that every layout starts alike."""

from __future__ import annotations

import hashlib
import itertools
import math

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.models.gpt import GPTModel

from trireme_trainer.engines.interface import ModelShape

# Their output is added to the residual stream once per half layer: Radford et al. 2019 (GPT-2), section 2.3.
_RESIDUAL_OUTPUTS = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight")


@torch.no_grad()
def fill(model: GPTModel, shape: ModelShape, seed: int) -> None:
    """Normal(0, initializer_range) matrices, residual outputs scaled by 1/sqrt(2 layers), norms of one."""
    state = model.sharded_state_dict()
    apply_factories(state)
    for shard in nested_values(state):
        if isinstance(shard, ShardedTensor) and shard.data is not None:
            _fill_shard(shard, shape, seed)


def _fill_shard(shard: ShardedTensor, shape: ModelShape, seed: int) -> None:
    if len(shard.local_shape) == 1:
        shard.data.fill_(1.0)
        return
    deviation = shape.initializer_range
    if shard.key.endswith(_RESIDUAL_OUTPUTS):
        deviation /= math.sqrt(2 * shape.num_hidden_layers)
    lead = shard.prepend_axis_num
    whole = torch.empty(shard.global_shape[lead:], dtype=torch.float32, device=shard.data.device)
    generator = torch.Generator(device=whole.device)
    generator.manual_seed(_seed_of(seed, shard.key, shard.global_offset[:lead]))
    whole.normal_(0.0, deviation, generator=generator)
    part = tuple(
        slice(start, start + length)
        for start, length in itertools.zip_longest(shard.global_offset[lead:], shard.local_shape)
    )
    shard.data.copy_(whole[part])


def _seed_of(seed: int, key: str, layer: tuple[int, ...]) -> int:
    digest = hashlib.sha256(f"{seed}/{key}/{layer}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
