"""A save writes the gathered state from where it lies, without a second copy of it in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trireme_trainer.checkpoint import sharded
from trireme_trainer.engines.megatron import cpu_bridge


@pytest.fixture
def _bridge() -> Iterator[None]:
    cpu_bridge.install()
    yield
    cpu_bridge.uninstall()


@pytest.mark.usefixtures("_bridge")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_slices_of_the_gathered_state_are_written_without_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    from trireme_trainer.engines.megatron import checkpointing

    gathered = torch.arange(12.0)
    boxes = {"first": gathered[:4].view(2, 2), "second": gathered[4:10], "strided": gathered[10:].expand(3, 2).t()}
    state = {0: {n: ShardedTensor.from_rank_offsets(n, box, replica_id=0) for n, box in boxes.items()}}
    monkeypatch.setattr(checkpointing, "optimizer_sharded_state", lambda *_, **__: state)
    monkeypatch.setattr(checkpointing, "save_preprocess", lambda whole: (whole, {}))  # it wants a process group
    nothing: Any = None
    chunks, tensors = checkpointing._snapshot(nothing, nothing, sharded.shard_file(0))
    names = {chunk.key: chunk.name for chunk in chunks}
    for key in ("first", "second"):
        assert tensors[names[key]].data_ptr() == boxes[key].data_ptr()
    sharded.write_shard(tmp_path / sharded.shard_file(0), tensors)
    written = load_file(tmp_path / sharded.shard_file(0))
    assert all(torch.equal(written[names[key]], box) for key, box in boxes.items())
