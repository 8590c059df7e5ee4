"""Sharded checkpoints on a local disk: one safetensors file per rank and one JSON index. No pickle.

A global tensor is a regular grid of chunks. A rank writes the chunks it owns to a file of its own;
the index says for every tensor where each chunk lies, so a reader of any layout can cut out the box it needs.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from trireme_trainer.engines.interface import CheckpointFormatError, NonFiniteState

INDEX_FILE = "index.json"
FORMAT = "trireme-sharded-1"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int64": torch.int64}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_OS_ERROR = re.compile(r"\(os error (\d+)\)")

Box = tuple[int, ...]


@dataclass(frozen=True)
class Chunk:
    """A box of a global tensor and where it is stored."""

    key: str
    dtype: str
    global_shape: Box
    offset: Box
    shape: Box
    file: str

    @property
    def name(self) -> str:
        """Name of the chunk inside its file."""
        return f"{self.key}@{'.'.join(map(str, self.offset))}"


@dataclass(frozen=True)
class StoredTensor:
    """A global tensor and its chunks."""

    dtype: str
    shape: Box
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Index:
    """Everything about a checkpoint but the numbers in its tensors."""

    step: int
    world_size: int
    state: Mapping[str, Any]
    """JSON value of the engine: optimizer step, model shape, the caller's extra state."""
    tensors: Mapping[str, StoredTensor] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """Shard files, sorted."""
        return tuple(sorted({chunk.file for tensor in self.tensors.values() for chunk in tensor.chunks}))


def shard_file(rank: int) -> str:
    """Name of the file that a rank writes."""
    return f"shard-{rank:05d}.safetensors"


def describe_chunk(key: str, tensor: torch.Tensor, global_shape: Box, offset: Box, shape: Box, file: str) -> Chunk:
    """The chunk of `tensor` inside the global tensor `key`; raises CheckpointFormatError for an unknown dtype."""
    name = _DTYPE_NAMES.get(tensor.dtype)
    if name is None:
        raise CheckpointFormatError(f"tensor {key}: dtype {tensor.dtype} is not one of {', '.join(_DTYPES)}")
    return Chunk(key, name, tuple(global_shape), tuple(offset), tuple(shape), file)


def write_shard(path: Path, tensors: Mapping[str, torch.Tensor]) -> int:
    """Write one rank's chunks and flush them to the disk; returns bytes. Raises OSError, NonFiniteState."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise NonFiniteState(f"{name} holds {int((~torch.isfinite(tensor)).sum())} numbers that are not finite")
    save_tensors(path, tensors)
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    return path.stat().st_size


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file. Raises OSError, which the library itself hides in an error of its own."""
    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        number = _OS_ERROR.search(str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error


def build_index(step: int, world_size: int, state: Mapping[str, Any], chunks: Iterable[Chunk]) -> Index:
    """Gather all ranks' chunks by tensor; raises CheckpointFormatError unless they tile every tensor."""
    by_key: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        by_key.setdefault(chunk.key, []).append(chunk)
    tensors = {}
    for key in sorted(by_key):
        found = sorted(by_key[key], key=lambda chunk: chunk.offset)
        tensor = StoredTensor(found[0].dtype, found[0].global_shape, tuple(found))
        _check_tiling(key, tensor)
        tensors[key] = tensor
    return Index(step, world_size, state, tensors)


def write_index(path: Path, index: Index) -> int:
    """Write the index as JSON; returns bytes."""
    document = {
        "format": FORMAT,
        "step": index.step,
        "worldSize": index.world_size,
        "state": index.state,
        "tensors": {
            key: {
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "chunks": [{"offset": c.offset, "shape": c.shape, "file": c.file} for c in tensor.chunks],
            }
            for key, tensor in index.tensors.items()
        },
    }
    data = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return len(data)


def read_index(directory: Path) -> Index:
    """The index of a checkpoint directory; raises CheckpointFormatError for anything that is not one."""
    path = directory / INDEX_FILE
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointFormatError(f"{path} is missing") from None
    except ValueError as error:
        raise CheckpointFormatError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointFormatError(f"{path} is not of format {FORMAT}")
    try:
        chunks = [
            Chunk(key, tensor["dtype"], _box(tensor["shape"]), _box(c["offset"]), _box(c["shape"]), _file(c["file"]))
            for key, tensor in document["tensors"].items()
            for c in tensor["chunks"]
        ]
        step, world_size, state = document["step"], document["worldSize"], document["state"]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointFormatError(f"{path} lacks or misstates a field: {error!r}") from error
    if not isinstance(step, int) or not isinstance(world_size, int) or not isinstance(state, dict):
        raise CheckpointFormatError(f"{path}: step, worldSize or state is of the wrong type")
    return build_index(step, world_size, state, chunks)


class ShardReader:
    """Cuts boxes of global tensors out of a checkpoint directory; use as a context manager."""

    def __init__(self, directory: Path, index: Index) -> None:
        self.directory = directory
        self.index = index
        self._open: dict[str, Any] = {}

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._open.clear()

    def read(self, key: str, global_shape: Box, offset: Box, shape: Box, dtype: torch.dtype) -> torch.Tensor:
        """The box at `offset` of `shape` of tensor `key`; raises CheckpointFormatError if it is not stored so."""
        stored = self.index.tensors.get(key)
        if stored is None:
            raise CheckpointFormatError(f"tensor {key} is not in the checkpoint")
        if tuple(stored.shape) != tuple(global_shape):
            raise CheckpointFormatError(f"tensor {key} is stored as {stored.shape}, the model has {global_shape}")
        if _DTYPES.get(stored.dtype) != dtype:
            raise CheckpointFormatError(f"tensor {key} is stored as {stored.dtype}, the model has {dtype}")
        result = torch.empty(shape, dtype=dtype)
        for chunk in stored.chunks:
            overlap = _overlap(offset, shape, chunk.offset, chunk.shape)
            if overlap is not None:
                into, out_of = overlap
                result[into] = self._chunk(chunk)[out_of]
        return result

    def _chunk(self, chunk: Chunk) -> torch.Tensor:
        path = self.directory / chunk.file
        try:
            if chunk.file not in self._open:
                self._open[chunk.file] = safe_open(path, framework="pt")
            tensor: torch.Tensor = self._open[chunk.file].get_tensor(chunk.name)
        except FileNotFoundError:
            raise CheckpointFormatError(f"{path} is missing; it holds {chunk.name}") from None
        except SafetensorError as error:
            raise CheckpointFormatError(f"{path}: {error} (reading {chunk.name})") from error
        if tensor.numel() != math.prod(chunk.shape) or tensor.dtype != _DTYPES[chunk.dtype]:
            raise CheckpointFormatError(
                f"{path}: {chunk.name} is {tuple(tensor.shape)} {tensor.dtype}, the index says "
                f"{chunk.shape} {chunk.dtype}"
            )
        return tensor.view(chunk.shape)


def _check_tiling(key: str, tensor: StoredTensor) -> None:
    """Chunks of one shape at distinct multiples of it, as many as fill the tensor: none overlaps or is missing."""
    shape = tensor.chunks[0].shape
    seen: set[Box] = set()
    for chunk in tensor.chunks:
        alike = (chunk.dtype, chunk.global_shape, chunk.shape) == (tensor.dtype, tensor.shape, shape)
        on_grid = len(chunk.offset) == len(shape) == len(tensor.shape) and all(
            length > 0 and start % length == 0 and start + length <= size
            for start, length, size in zip(chunk.offset, shape, tensor.shape, strict=True)
        )
        if (
            not alike
            or not on_grid
            or min(chunk.offset, default=0) < 0
            or chunk.offset in seen
            or chunk.dtype not in _DTYPES
        ):
            raise CheckpointFormatError(f"tensor {key}: chunk at {chunk.offset} of {chunk.shape} does not fit")
        seen.add(chunk.offset)
    covered, whole = len(tensor.chunks) * math.prod(shape), math.prod(tensor.shape)
    if covered != whole:
        raise CheckpointFormatError(f"tensor {key}: its chunks hold {covered} of {whole} elements")


def _overlap(
    offset: Box, shape: Box, chunk_offset: Box, chunk_shape: Box
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    into, out_of = [], []
    for start, length, chunk_start, chunk_length in zip(offset, shape, chunk_offset, chunk_shape, strict=True):
        low, high = max(start, chunk_start), min(start + length, chunk_start + chunk_length)
        if low >= high:
            return None
        into.append(slice(low - start, high - start))
        out_of.append(slice(low - chunk_start, high - chunk_start))
    return tuple(into), tuple(out_of)


def _box(value: Any) -> Box:
    if not isinstance(value, list) or not all(isinstance(size, int) and size >= 0 for size in value):
        raise TypeError(f"{value!r} is not a list of sizes")
    return tuple(value)


def _file(value: Any) -> str:
    if not isinstance(value, str) or Path(value).name != value or not value.endswith(".safetensors"):
        raise TypeError(f"{value!r} is not the name of a shard file")
    return value
