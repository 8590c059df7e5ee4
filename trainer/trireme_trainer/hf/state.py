"""What is trained and Adam's state of it, as whole tensors, whatever ZeRO has shared out: to save and to restore.

Names are those of the model's parameters, so that a checkpoint of one world size or ZeRO stage loads into any other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from trireme_trainer.checkpoint.sharded import write_shard
from trireme_trainer.engines.interface import CheckpointFormatError

WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")
STATE_FILE = "state.json"
FORMAT = "trireme-trainable-1"


class Trainable:
    """The trained parameters of a model and their AdamW state. What yields or takes tensors is collective."""

    def __init__(self, model: nn.Module, optimizer: Any) -> None:
        self._optimizer = optimizer
        self.parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]

    @property
    def step(self) -> int:
        """Updates counted by Adam's bias correction."""
        state = self._states().get(self._parts()[0])
        return int(state["step"]) if state else 0

    def _states(self) -> dict[Any, dict[str, Any]]:
        states: dict[Any, dict[str, Any]] = self._optimizer.state
        return states

    def _parts(self) -> list[torch.Tensor]:
        """The tensors that the optimizer updates on this rank."""
        return [parameter for _, parameter in self.parameters]

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, whole tensor) of each parameter."""
        for name, parameter in self.parameters:
            yield name, self._get(parameter, WEIGHT)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(part/name, whole tensor) of weights and moments. There must have been a step."""
        self._link()
        for name, parameter in self.parameters:
            for part in (WEIGHT, *MOMENTS):
                yield f"{part}/{name}", self._get(parameter, part)

    def load(self, stored: StoredTensors, step: int) -> None:
        """Take weights and moments. Raises CheckpointFormatError."""
        for tensor in self._parts():
            zeros = {moment: torch.zeros_like(tensor) for moment in MOMENTS}
            self._states()[tensor] = {"step": torch.tensor(float(step)), **zeros}
        self._link()
        with torch.no_grad():
            for name, parameter in self.parameters:
                for part in (WEIGHT, *MOMENTS):
                    self._set(parameter, part, stored.read(f"{part}/{name}", self._shape(parameter)))
            self._refresh()

    def _shape(self, parameter: Any) -> torch.Size:
        return torch.Size(parameter.shape)

    def _get(self, parameter: Any, part: str) -> torch.Tensor:
        tensor: torch.Tensor = parameter if part == WEIGHT else self._states()[parameter][part]
        return tensor.detach()

    def _set(self, parameter: Any, part: str, value: torch.Tensor) -> None:
        self._get(parameter, part).copy_(value)

    def _link(self) -> None:
        """Make the moments known to what finds a parameter's share of them."""

    def _refresh(self) -> None:
        """Bring changed master weights to where the model computes with them."""


class TrainableOfZero(Trainable):
    """Under ZeRO stage 1 or 2: the optimizer updates a rank's share of flat groups of parameters."""

    def _states(self) -> dict[Any, dict[str, Any]]:
        states: dict[Any, dict[str, Any]] = self._optimizer.optimizer.state
        return states

    def _parts(self) -> list[torch.Tensor]:
        return list(self._optimizer.single_partition_of_fp32_groups)

    def _get(self, parameter: Any, part: str) -> torch.Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        found = (
            safe_get_full_fp32_param(parameter) if part == WEIGHT else safe_get_full_optimizer_state(parameter, part)
        )
        assert found is not None
        tensor: torch.Tensor = found
        return tensor

    def _set(self, parameter: Any, part: str, value: torch.Tensor) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if part == WEIGHT:
            safe_set_full_fp32_param(parameter, value.to(torch.float32))
        else:
            safe_set_full_optimizer_state(parameter, value, part)

    def _link(self) -> None:
        # By itself the library links once, after the first group's first step, when the others have no moments yet.
        self._optimizer._hp_optimizer_states_linked = False
        self._optimizer._lazy_init_hp_params_optimizer_state()

    def _refresh(self) -> None:
        self._optimizer.update_lp_params()


class TrainableOfZero3(TrainableOfZero):
    """Under ZeRO stage 3: weights are shared out too."""

    def _parts(self) -> list[torch.Tensor]:
        return list(self._optimizer.fp32_partitioned_groups_flat)

    def _shape(self, parameter: Any) -> torch.Size:
        return torch.Size(parameter.ds_shape)

    def _set(self, parameter: Any, part: str, value: torch.Tensor) -> None:
        # The library's own setter reads past the end where the ranks do not divide a parameter evenly.
        share, _ = self._optimizer._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=None if part == WEIGHT else part
        )
        rank = self._optimizer._get_param_partition_rank(parameter)
        mine = value.flatten()[share.numel() * rank : share.numel() * (rank + 1)]
        share.data.zero_()
        share.data[: mine.numel()].copy_(mine)

    def _link(self) -> None:
        """Shares are found by position."""

    def _refresh(self) -> None:
        for group in range(len(self._parts())):
            self._optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if persistent := self._optimizer.persistent_parameters:
            persistent[0].all_gather(persistent)


def trainable_of(model: nn.Module, optimizer: Any, zero_stage: int) -> Trainable:
    """The trained parameters; `optimizer` as accelerate has wrapped it."""
    while not isinstance(optimizer, torch.optim.Optimizer) or type(optimizer).__module__.startswith("accelerate"):
        if type(optimizer).__name__.startswith("DeepSpeedZeroOptimizer"):
            break
        optimizer = optimizer.optimizer
    kind = {0: Trainable, 3: TrainableOfZero3}.get(zero_stage, TrainableOfZero)
    return kind(model, optimizer)


def file_name(rank: int) -> str:
    """The file that a rank writes."""
    return f"trainable-{rank:05d}.safetensors"


def write_state(
    directory: Path,
    trainable: Trainable,
    state: dict[str, Any],
    *,
    rank: int,
    world_size: int,
    more: Mapping[str, torch.Tensor] | None = None,
) -> list[str]:
    """Write this rank's part of a checkpoint: of all whole tensors every world_size-th; rank 0 also the JSON state.

    `more`: tensors of this rank's own, by keys that no other rank has.

    Collective; the names of the files. Raises OSError and NonFiniteState, after the last collective.
    """
    mine = {
        key: tensor.detach().to("cpu", copy=True).contiguous()
        for number, (key, tensor) in enumerate(trainable.tensors())
        if number % world_size == rank
    } | dict(more or {})
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    if mine:
        write_shard(directory / file_name(rank), mine)
        files.append(file_name(rank))
    if rank == 0:
        document = {"format": FORMAT, "adamStep": trainable.step, **state}
        (directory / STATE_FILE).write_text(json.dumps(document, sort_keys=True))
        files.append(STATE_FILE)
    return files


class StoredTensors:
    """The tensors of a checkpoint in a local directory."""

    def __init__(self, directory: Path) -> None:
        """Raises CheckpointFormatError."""
        try:
            self.state: dict[str, Any] = json.loads((directory / STATE_FILE).read_text())
            files: list[Any] = [
                safe_open(path, framework="pt") for path in sorted(directory.glob("trainable-*.safetensors"))
            ]
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointFormatError(f"{directory.name}: {error}") from error
        if self.state.get("format") != FORMAT:
            raise CheckpointFormatError(f"{STATE_FILE}: format {self.state.get('format')!r}, expected {FORMAT!r}")
        self._files = {key: file for file in files for key in file.keys()}  # noqa: SIM118 it is no mapping

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """All tensors of a part, by what follows its name."""
        mine = [key for key in self._files if key.startswith(f"{name}/")]
        return {key.removeprefix(f"{name}/"): self._files[key].get_tensor(key) for key in mine}

    def read(self, key: str, shape: torch.Size) -> torch.Tensor:
        """One tensor. Raises CheckpointFormatError unless it is there in this shape."""
        if key not in self._files:
            raise CheckpointFormatError(f"the checkpoint has no tensor {key}")
        tensor: torch.Tensor = self._files[key].get_tensor(key)
        if tensor.shape != shape:
            raise CheckpointFormatError(f"{key} has shape {list(tensor.shape)}, this job's is {list(shape)}")
        return tensor
