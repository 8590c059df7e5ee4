"""The header of a safetensors file, checked without reading a weight.

Format: 8 bytes little-endian length N, N bytes of JSON {name: {dtype, shape, data_offsets: [begin, end]}}, then the
data, without gaps (https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from trireme_serving.errors import Unusable

MAX_HEADER_BYTES = 100_000_000
"""The library's own limit."""
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}

Shapes = dict[str, tuple[int, ...]]


def read_shapes(path: Path) -> Shapes:
    """Name -> shape of every tensor. Raises Unusable (WeightsCorrupt) where header and file do not agree."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise _corrupt(path, f"a header of {length} bytes in a file of {size}")
        raw = file.read(length)
    try:
        header: dict[str, Any] = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = {
            name: (e["dtype"], tuple(map(int, e["shape"])), *map(int, e["data_offsets"])) for name, e in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _corrupt(path, f"the header cannot be read: {type(error).__name__}: {error}") from error
    end = 0
    for name, (dtype, shape, begin, stop) in sorted(tensors.items(), key=lambda item: item[1][2:]):
        bits = _BITS.get(dtype)
        if bits is None:
            raise _corrupt(path, f"tensor {name} is of unknown type {dtype}")
        if begin != end or (stop - begin) * 8 != math.prod(shape) * bits:
            raise _corrupt(path, f"tensor {name} {list(shape)} of {dtype} cannot lie in bytes {begin} to {stop}")
        end = stop
    if 8 + length + end != size:
        raise _corrupt(path, f"the tensors end at byte {8 + length + end}, the file at {size}")
    return {name: shape for name, (_, shape, _, _) in tensors.items()}


def _corrupt(path: Path, message: str) -> Unusable:
    return Unusable("WeightsCorrupt", path.name, message)
