"""The trained weights as a Hugging Face LlamaForCausalLM in safetensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories, is_main_replica
from megatron.core.models.gpt import GPTModel

from trireme_trainer.checkpoint.sharded import save_tensors
from trireme_trainer.engines.interface import EngineConfig, EngineError, ExportResult, ModelShape

_FILE_BYTES = 4 * 1024**3
_LAYER = "decoder.layers."
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class _Piece:
    """A box of a global tensor that one rank sends to rank 0."""

    rank: int
    key: str
    lead: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    global_shape: tuple[int, ...]
    dtype: torch.dtype


@torch.no_grad()
def export_hugging_face(
    model: GPTModel, config: EngineConfig, directory: Path, tokenizer_directory: Path | None
) -> ExportResult:
    """Send every weight to rank 0, one tensor at a time, which writes files of at most 4 GiB and the config."""
    files: list[str] = []
    parameters = 0
    writer = _Writer(directory) if dist.get_rank() == 0 else None
    for key, lead, whole in _whole_tensors(model):
        if writer is None or whole is None:
            continue
        parameters += whole.numel()
        for name, tensor in _to_hugging_face(key, lead, whole, config.model):
            writer.add(name, tensor)
    if writer is not None:
        files = writer.finish()
        files += _write_config(directory, config, tokenizer_directory)
    dist.barrier()
    return ExportResult(tuple(files), parameters)


def _whole_tensors(model: GPTModel) -> Iterator[tuple[str, tuple[int, ...], torch.Tensor | None]]:
    """Every weight, layer by layer, whole on rank 0 and None elsewhere; collective."""
    rank = dist.get_rank()
    state = model.sharded_state_dict()
    apply_factories(state)
    mine = {}
    for shard in nested_values(state):
        if isinstance(shard, ShardedTensor) and is_main_replica(shard.replica_id):
            lead = shard.prepend_axis_num
            piece = _Piece(
                rank,
                shard.key,
                tuple(shard.global_offset[:lead]),
                tuple(shard.global_offset[lead:]),
                tuple(shard.local_shape),
                tuple(shard.global_shape[lead:]),
                shard.dtype,
            )
            mine[piece] = shard.data.detach()
    everyone: list[list[_Piece]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, list(mine))
    by_tensor: dict[tuple[str, tuple[int, ...]], list[_Piece]] = {}
    for part in everyone:
        for piece in part:
            by_tensor.setdefault((piece.key, piece.lead), []).append(piece)
    device = next(model.parameters()).device
    for (key, lead), pieces in sorted(by_tensor.items(), key=lambda item: item[0]):
        yield key, lead, _gather(pieces, mine, rank, device)


def _gather(
    pieces: list[_Piece], mine: dict[_Piece, torch.Tensor], rank: int, device: torch.device
) -> torch.Tensor | None:
    whole = torch.empty(pieces[0].global_shape, dtype=pieces[0].dtype) if rank == 0 else None
    for piece in pieces:
        if piece.rank == rank and rank != 0:
            dist.send(mine[piece].contiguous(), dst=0)
        elif whole is not None:
            box = mine.get(piece)
            if box is None:
                box = torch.empty(piece.shape, dtype=piece.dtype, device=device)
                dist.recv(box, src=piece.rank)
            where = tuple(slice(o, o + n) for o, n in zip(piece.offset, piece.shape, strict=True))
            whole[where] = box.cpu()
    return whole


def _to_hugging_face(
    key: str, lead: tuple[int, ...], whole: torch.Tensor, shape: ModelShape
) -> Iterator[tuple[str, torch.Tensor]]:
    if key.startswith(_LAYER):
        prefix = f"model.layers.{lead[0]}."
        yield from ((prefix + name, tensor) for name, tensor in _layer(key.removeprefix(_LAYER), whole, shape))
        return
    names = {
        "embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "decoder.final_layernorm.weight": "model.norm.weight",
        "output_layer.weight": "lm_head.weight",
    }
    if key not in names:
        raise EngineError(f"no Hugging Face name for weight {key}")
    yield names[key], whole


def _layer(name: str, whole: torch.Tensor, shape: ModelShape) -> Iterator[tuple[str, torch.Tensor]]:
    # Megatron-core files a norm under the matrix that follows it, whether or not the two are fused.
    plain = {
        "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
        "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
        "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
        "mlp.linear_fc2.weight": "mlp.down_proj.weight",
    }
    if name in plain:
        yield plain[name], whole
    elif name == "mlp.linear_fc1.weight":
        gate, up = whole.chunk(2)
        yield "mlp.gate_proj.weight", gate
        yield "mlp.up_proj.weight", up
    elif name == "self_attention.linear_qkv.weight":
        # Megatron-core stores, per key-value group, its query heads, then its key, then its value.
        size, groups = shape.attention_head_size, shape.num_key_value_heads
        heads_per_group = shape.num_attention_heads // groups
        grouped = whole.view(groups, heads_per_group + 2, size, shape.hidden_size)
        parts = {"q": grouped[:, :heads_per_group], "k": grouped[:, -2], "v": grouped[:, -1]}
        for letter, part in parts.items():
            yield f"self_attn.{letter}_proj.weight", part.reshape(-1, shape.hidden_size)
    else:
        raise EngineError(f"no Hugging Face name for layer weight {name}")


class _Writer:
    """Collects tensors and writes a file whenever enough have come."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._pending: dict[str, torch.Tensor] = {}
        self._parts: list[list[str]] = []
        self._pending_bytes = self._total_bytes = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + size > _FILE_BYTES:
            self._flush()
        self._pending[name] = tensor.clone(memory_format=torch.contiguous_format)
        self._pending_bytes += size
        self._total_bytes += size

    def finish(self) -> list[str]:
        self._flush()
        count = len(self._parts)
        if count == 1:
            (self._directory / self._part(0)).rename(self._directory / "model.safetensors")
            return ["model.safetensors"]
        files = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        for i, file in enumerate(files):
            (self._directory / self._part(i)).rename(self._directory / file)
        where = {name: file for file, names in zip(files, self._parts, strict=True) for name in names}
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": where}
        _write_json(self._directory / "model.safetensors.index.json", index)
        return [*files, "model.safetensors.index.json"]

    def _part(self, number: int) -> str:
        return f".part-{number}.safetensors"

    def _flush(self) -> None:
        save_tensors(self._directory / self._part(len(self._parts)), self._pending, {"format": "pt"})
        self._parts.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0


def _write_config(directory: Path, config: EngineConfig, tokenizer_directory: Path | None) -> list[str]:
    model = config.model
    dtype = "bfloat16" if config.precision == "bf16" else "float32"
    document: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_hidden_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
        "head_dim": model.attention_head_size,
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": model.rms_norm_eps,
        # transformers 4 reads rope_theta, 5 reads rope_parameters.
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "tie_word_embeddings": model.tie_word_embeddings,
        "initializer_range": model.initializer_range,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
        "torch_dtype": dtype,
        "dtype": dtype,
    }
    files = ["config.json"]
    if tokenizer_directory is not None:
        document.update(_special_token_ids(tokenizer_directory))
        for name in _TOKENIZER_FILES:
            if (tokenizer_directory / name).is_file():
                shutil.copyfile(tokenizer_directory / name, directory / name)
                files.append(name)
    _write_json(directory / "config.json", document)
    return files


def _special_token_ids(tokenizer_directory: Path) -> dict[str, int]:
    """Ids of the begin and end tokens that tokenizer_config.json names, looked up in tokenizer.json."""
    described = tokenizer_directory / "tokenizer_config.json"
    vocabulary = tokenizer_directory / "tokenizer.json"
    if not described.is_file() or not vocabulary.is_file():
        return {}
    ids = {token["content"]: int(token["id"]) for token in json.loads(vocabulary.read_text())["added_tokens"]}
    found = {}
    for name, value in json.loads(described.read_text()).items():
        content = value.get("content") if isinstance(value, dict) else value
        if name in ("bos_token", "eos_token") and content in ids:
            found[f"{name}_id"] = ids[content]
    return found


def _write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
