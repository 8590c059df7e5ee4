"""Weights to start from: a sharded checkpoint's or a Hugging Face Llama's; moments and step start afresh."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.models.gpt import GPTModel
from safetensors import SafetensorError, safe_open

from trireme_trainer.checkpoint import sharded
from trireme_trainer.engines.interface import CheckpointFormatError, EngineConfig, ModelShape
from trireme_trainer.engines.shapes import check_hugging_face, check_weights_fit

Source = Callable[[ShardedTensor], torch.Tensor]


@torch.no_grad()
def fill_from(directory: Path, config: EngineConfig, model: GPTModel) -> None:
    """Fill this rank's weights from a directory with either layout; raises CheckpointFormatError."""
    if (directory / sharded.INDEX_FILE).is_file():
        index = sharded.read_index(directory)
        check_weights_fit(config.model, index.state.get("model"))
        with sharded.ShardReader(directory, index) as reader:
            _fill(model, lambda shard: _from_checkpoint(reader, shard))
    elif (directory / "config.json").is_file():
        source = _HuggingFace(directory, config.model)
        _fill(model, source.box)
    else:
        raise CheckpointFormatError(f"{directory} holds neither {sharded.INDEX_FILE} nor config.json")


def _fill(model: GPTModel, source: Source) -> None:
    state = model.sharded_state_dict()
    apply_factories(state)
    for shard in nested_values(state):
        if isinstance(shard, ShardedTensor) and shard.data is not None:
            shard.data.copy_(source(shard).view(shard.data.shape))


def _from_checkpoint(reader: sharded.ShardReader, shard: ShardedTensor) -> torch.Tensor:
    box = (1,) * shard.prepend_axis_num + tuple(shard.local_shape)
    key = f"optimizer.state.param.{shard.key}"
    return reader.read(key, shard.global_shape, shard.global_offset, box, torch.float32)


class _HuggingFace:
    """Boxes of Megatron-core's tensors, put together from a LlamaForCausalLM's."""

    def __init__(self, directory: Path, shape: ModelShape) -> None:
        self._directory = directory
        self._shape = shape
        path = directory / "config.json"
        check_hugging_face(path.read_bytes(), str(path), shape)
        self._files = _file_of_each_tensor(directory)
        self._last: tuple[tuple[str, tuple[int, ...]], torch.Tensor] | None = None

    def box(self, shard: ShardedTensor) -> torch.Tensor:
        """The shard's part of the global tensor."""
        lead = shard.prepend_axis_num
        layer = tuple(shard.global_offset[:lead])
        if self._last is None or self._last[0] != (shard.key, layer):
            # The two halves of a gated matrix come one after the other.
            self._last = ((shard.key, layer), self._whole(shard.key, layer))
        whole = self._last[1]
        if tuple(whole.shape) != tuple(shard.global_shape[lead:]):
            raise CheckpointFormatError(
                f"{self._directory}: {shard.key} would be {tuple(whole.shape)}, the model has "
                f"{tuple(shard.global_shape[lead:])}"
            )
        offsets = zip(shard.global_offset[lead:], shard.local_shape, strict=True)
        return whole[tuple(slice(start, start + length) for start, length in offsets)]

    def _whole(self, key: str, layer: tuple[int, ...]) -> torch.Tensor:
        outer = {
            "embedding.word_embeddings.weight": "model.embed_tokens.weight",
            "decoder.final_layernorm.weight": "model.norm.weight",
            "output_layer.weight": "lm_head.weight",
        }
        if key in outer:
            return self._tensor(outer[key])
        prefix = f"model.layers.{layer[0]}."
        inner = {
            "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
            "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
            "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
            "mlp.linear_fc2.weight": "mlp.down_proj.weight",
        }
        name = key.removeprefix("decoder.layers.")
        if name in inner:
            return self._tensor(prefix + inner[name])
        if name == "mlp.linear_fc1.weight":
            return torch.cat([self._tensor(f"{prefix}mlp.{half}_proj.weight") for half in ("gate", "up")])
        if name == "self_attention.linear_qkv.weight":
            groups, hidden = self._shape.num_key_value_heads, self._shape.hidden_size
            parts = [self._tensor(f"{prefix}self_attn.{letter}_proj.weight") for letter in "qkv"]
            return torch.cat([part.view(groups, -1, hidden) for part in parts], dim=1).reshape(-1, hidden)
        raise CheckpointFormatError(f"no Hugging Face name for weight {key}")

    def _tensor(self, name: str) -> torch.Tensor:
        file = self._files.get(name)
        if file is None:
            raise CheckpointFormatError(f"{self._directory} holds no tensor {name}")
        try:
            with safe_open(file, framework="pt") as opened:
                tensor: torch.Tensor = opened.get_tensor(name)
        except (SafetensorError, FileNotFoundError) as error:
            raise CheckpointFormatError(f"{file}: {error} (reading {name})") from error
        return tensor


def _file_of_each_tensor(directory: Path) -> dict[str, Path]:
    index = directory / "model.safetensors.index.json"
    try:
        if index.is_file():
            where = json.loads(index.read_bytes())["weight_map"]
            return {name: directory / Path(file).name for name, file in where.items()}
        single = directory / "model.safetensors"
        with safe_open(single, framework="pt") as opened:
            return dict.fromkeys(opened.keys(), single)
    except (SafetensorError, FileNotFoundError, ValueError, KeyError) as error:
        raise CheckpointFormatError(f"{directory} holds no readable model.safetensors: {error}") from error
