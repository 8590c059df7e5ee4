"""A rank holds one parameter's state at a time while it loads, and reads none that others update."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trireme_trainer.checkpoint import sharded
from trireme_trainer.engines.megatron import cpu_bridge


@pytest.fixture
def _bridge() -> Iterator[None]:
    cpu_bridge.install()
    yield
    cpu_bridge.uninstall()


@pytest.mark.usefixtures("_bridge")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_state_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    from trireme_trainer.engines.megatron.checkpointing import _ByParameter

    chunks, written = [], {}
    for number in range(3):
        tensor = torch.full((2, 2), float(number))
        key = f"exp_avg.{number}"
        chunks.append(sharded.describe_chunk(key, tensor, (2, 2), (0, 0), (2, 2), sharded.shard_file(0)))
        written[chunks[-1].name] = tensor
    sharded.write_shard(tmp_path / sharded.shard_file(0), written)
    sharded.write_index(tmp_path / sharded.INDEX_FILE, sharded.build_index(1, 1, {}, chunks))

    request = {
        n: {"exp_avg": ShardedTensor.from_rank_offsets(f"exp_avg.{n}", torch.empty(2, 2), replica_id=0)}
        for n in range(3)
    }
    read: list[str] = []

    class Counting(sharded.ShardReader):
        def read(self, key: str, *box: Any) -> torch.Tensor:
            read.append(key)
            return super().read(key, *box)

    with Counting(tmp_path, sharded.read_index(tmp_path)) as reader:
        state = _ByParameter(reader, request)
        assert read == []
        assert torch.equal(state[1]["exp_avg"], torch.ones(2, 2))
    assert read == ["exp_avg.1"]
