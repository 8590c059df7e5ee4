"""What the planner is asked and what it answers."""

from typing import Literal

from pydantic import Field

from trireme.planning.hardware import AcceleratorKind
from trireme.planning.shape import LlamaShape
from trireme.protocol.base import WireModel
from trireme.protocol.memory import DeviceMemory

__all__ = ["AxisSize", "DeviceMemory", "Plan", "PlanError", "PlanRequest"]

AxisSize = int | Literal["auto"]


class PlanError(ValueError):
    """A job that cannot run as it stands: a CamelCase reason, the field of the spec and the numbers."""

    def __init__(self, reason: str, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.reason = reason
        self.field = field
        self.message = message


class PlanRequest(WireModel):
    """Everything that a plan depends on; no more than that, so that equal requests have equal plans."""

    model: LlamaShape
    sequence_length: int = Field(ge=1)
    global_batch_size: int = Field(ge=1, description="Sequences per optimizer step.")
    precision: Literal["fp32", "bf16"] = "bf16"
    micro_batch_size: AxisSize = "auto"
    recompute: Literal["auto", "none", "full"] = "auto"
    tensor: AxisSize = "auto"
    pipeline: AxisSize = "auto"
    data: AxisSize = "auto"
    context: AxisSize = "auto"
    engine: str = "megatron"
    nodes: int = Field(ge=1, le=65536)
    devices_per_node: int = Field(ge=1, le=1024)
    accelerator: AcceleratorKind
    device_memory_bytes: int | None = Field(
        default=None, description="Overrides the hardware table; on CPUs a rank's share of the pod's memory limit."
    )

    @property
    def world_size(self) -> int:
        """Ranks of the whole job."""
        return self.nodes * self.devices_per_node


class Plan(WireModel):
    """How a job's work is divided over its ranks; frozen in status at admission."""

    tensor: int
    pipeline: int
    data: int
    context: int = 1
    micro_batch_size: int = Field(description="Sequences per forward pass of one rank.")
    accumulation_steps: int = Field(description="Micro-batches per optimizer step: global = micro x data x this.")
    recompute: Literal["none", "full"] = Field(description="full: layers keep their input only and run forward twice.")
    distributed_optimizer: bool = Field(description="Optimizer states are shared out over the data axis.")
    zero_stage: int = Field(description="1 with the distributed optimizer, else 0.")
    parameters: int = Field(description="Of the whole model, exact.")
    parameters_per_device: int = Field(description="On the fullest device.")
    memory: DeviceMemory
    bubble_ratio: float = Field(description="Idle share of the pipeline: (p-1)/(p-1+m).")
    engine: str = "megatron"
    accelerator: AcceleratorKind
    rule: str = Field(description="Why this layout was chosen, in a sentence with its numbers.")

    @property
    def world_size(self) -> int:
        """Ranks of the layout."""
        return self.tensor * self.pipeline * self.data * self.context
