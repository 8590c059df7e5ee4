from __future__ import annotations

import errno
import itertools
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trireme_trainer.checkpoint import sharded
from trireme_trainer.engines.interface import CheckpointFormatError, NonFiniteState


def _write(directory: Path, whole: torch.Tensor, cuts: tuple[int, int]) -> sharded.Index:
    """`whole` in a grid of chunks, one file each."""
    rows, columns = (size // parts for size, parts in zip(whole.shape, cuts, strict=True))
    chunks = []
    for rank, (i, j) in enumerate(itertools.product(range(cuts[0]), range(cuts[1]))):
        offset = (i * rows, j * columns)
        part = whole[offset[0] : offset[0] + rows, offset[1] : offset[1] + columns].contiguous()
        file = sharded.shard_file(rank)
        chunk = sharded.describe_chunk("w", part, tuple(whole.shape), offset, tuple(part.shape), file)
        sharded.write_shard(directory / file, {chunk.name: part})
        chunks.append(chunk)
    index = sharded.build_index(3, len(chunks), {"adamStep": 3}, chunks)
    sharded.write_index(directory / sharded.INDEX_FILE, index)
    return index


@settings(max_examples=30, deadline=None)
@given(
    cuts=st.sampled_from([(1, 1), (2, 1), (4, 3), (1, 3)]),
    box=st.tuples(st.integers(0, 7), st.integers(1, 8), st.integers(0, 5), st.integers(1, 6)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_box_comes_back_whatever_the_cuts(
    tmp_path_factory: pytest.TempPathFactory,
    cuts: tuple[int, int],
    box: tuple[int, int, int, int],
    dtype: torch.dtype,
) -> None:
    directory = tmp_path_factory.mktemp("checkpoint")
    whole = torch.arange(48, dtype=dtype).reshape(8, 6)
    written = _write(directory, whole, cuts)
    index = sharded.read_index(directory)
    assert index == written
    row, height, column, width = box
    height, width = min(height, 8 - row), min(width, 6 - column)
    with sharded.ShardReader(directory, index) as reader:
        found = reader.read("w", (8, 6), (row, column), (height, width), dtype)
    assert torch.equal(found, whole[row : row + height, column : column + width])


def _drop_chunk(document: dict[str, Any]) -> None:
    document["tensors"]["w"]["chunks"].pop()


def _repeat_chunk(document: dict[str, Any]) -> None:
    document["tensors"]["w"]["chunks"][1] = document["tensors"]["w"]["chunks"][0]


def _escape(document: dict[str, Any]) -> None:
    document["tensors"]["w"]["chunks"][0]["file"] = "../../etc/passwd.safetensors"


def _outside(document: dict[str, Any]) -> None:
    document["tensors"]["w"]["chunks"][0]["offset"] = [-1, 0]


def _overlap(document: dict[str, Any]) -> None:
    document["tensors"]["w"]["chunks"][1]["offset"] = [2, 0]


def _other_format(document: dict[str, Any]) -> None:
    document["format"] = "pickle"


def _odd_dtype(document: dict[str, Any]) -> None:
    document["tensors"]["w"]["dtype"] = "object"


@pytest.mark.parametrize("damage", [_drop_chunk, _repeat_chunk, _escape, _outside, _overlap, _other_format, _odd_dtype])
def test_an_index_that_does_not_tile_its_tensors_is_refused(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None]
) -> None:
    _write(tmp_path, torch.ones(8, 6), (2, 1))
    path = tmp_path / sharded.INDEX_FILE
    document = json.loads(path.read_text())
    damage(document)
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointFormatError):
        sharded.read_index(tmp_path)


def test_a_pickle_in_place_of_a_shard_is_refused_unread(tmp_path: Path) -> None:
    index = _write(tmp_path, torch.ones(8, 6), (1, 1))
    torch.save({"w": torch.ones(8, 6)}, tmp_path / sharded.shard_file(0))
    with sharded.ShardReader(tmp_path, index) as reader, pytest.raises(CheckpointFormatError, match="shard-00000"):
        reader.read("w", (8, 6), (0, 0), (8, 6), torch.float32)


def test_a_truncated_or_exchanged_shard_is_named(tmp_path: Path) -> None:
    index = _write(tmp_path, torch.ones(8, 6), (2, 1))
    first, second = tmp_path / sharded.shard_file(0), tmp_path / sharded.shard_file(1)
    first.write_bytes(second.read_bytes())
    with sharded.ShardReader(tmp_path, index) as reader, pytest.raises(CheckpointFormatError, match="shard-00000"):
        reader.read("w", (8, 6), (0, 0), (8, 6), torch.float32)
    second.write_bytes(second.read_bytes()[:-4])
    with sharded.ShardReader(tmp_path, index) as reader, pytest.raises(CheckpointFormatError, match="shard-00001"):
        reader.read("w", (8, 6), (4, 0), (4, 6), torch.float32)


def test_not_json_and_missing_index_say_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointFormatError, match="is missing"):
        sharded.read_index(tmp_path)
    (tmp_path / sharded.INDEX_FILE).write_bytes(b"\x80\x04pickle")
    with pytest.raises(CheckpointFormatError, match="not JSON"):
        sharded.read_index(tmp_path)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to write past this size, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_more_is_an_error_of_the_disk(tmp_path: Path) -> None:
    path = tmp_path / sharded.shard_file(0)
    with files_of_at_most(1 << 20), pytest.raises(OSError, match="File too large") as caught:
        sharded.write_shard(path, {"w": torch.zeros(1 << 20)})
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_never_written(tmp_path: Path, number: float) -> None:
    weights = torch.ones(8)
    weights[5] = number
    with pytest.raises(NonFiniteState, match=r"^w@0 holds 1 numbers"):
        sharded.write_shard(tmp_path / "shard", {"v@0": torch.ones(2), "w@0": weights})
    assert list(tmp_path.iterdir()) == []
