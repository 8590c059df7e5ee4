"""The plan of a job whose ranks each hold a replica: how the batch is cut up, and what ZeRO shares out."""

from pydantic import Field

from trireme.planning.hardware import HARDWARE, AcceleratorKind
from trireme.planning.layouts import check_precision
from trireme.planning.types import AxisSize, PlanError
from trireme.protocol.base import WireModel

MOST_AT_ONCE = 8
"""Examples of a micro-batch that is chosen; larger ones gain little and need memory. A judgement."""


class DataParallelPlan(WireModel):
    """How the work is divided over ranks; frozen in status at admission."""

    data: int = Field(description="Replicas of the model, or with ZeRO shares of it: all ranks.")
    micro_batch_size: int = Field(description="Examples per forward pass of one rank.")
    accumulation_steps: int = Field(description="Micro-batches per optimizer step: global = micro x data x this.")
    zero_stage: int = Field(ge=0, le=3, description="What ranks share out (Rajbhandari et al. 2020).")
    engine: str = Field(description="ddp, or deepspeed where something is shared out.")
    accelerator: AcceleratorKind
    device_memory_bytes: int | None = Field(default=None, description="Of one rank; absent: not limited.")


def plan_data_parallel(
    *,
    world_size: int,
    global_batch_size: int,
    micro_batch_size: AxisSize,
    zero_stage: int,
    accelerator: AcceleratorKind,
    precision: str = "fp32",
    quantised: bool = False,
    device_memory_bytes: int | None = None,
) -> DataParallelPlan:
    """Cut the batch up. `device_memory_bytes`: where it differs from the hardware table's; `quantised`: the base is
    held in 4 bits.

    Raises PlanError with the numbers when the batch cannot be shared out evenly or the devices cannot compute so.
    """
    check_precision(accelerator, precision)
    if quantised:
        _check_quantised(accelerator, zero_stage)
    if global_batch_size % world_size:
        raise PlanError(
            "BatchNotDivisible",
            "training.globalBatchSize",
            f"{global_batch_size} examples cannot be shared out evenly over {world_size} ranks",
        )
    share = global_batch_size // world_size
    if micro_batch_size == "auto":
        micro = max(size for size in range(1, min(share, MOST_AT_ONCE) + 1) if share % size == 0)
    elif share % micro_batch_size:
        raise PlanError(
            "BatchNotDivisible",
            "training.microBatchSize",
            f"a rank's {share} examples of a step cannot be cut into micro-batches of {micro_batch_size}",
        )
    else:
        micro = micro_batch_size
    return DataParallelPlan(
        data=world_size,
        micro_batch_size=micro,
        accumulation_steps=share // micro,
        zero_stage=zero_stage,
        engine="deepspeed" if zero_stage else "ddp",
        accelerator=accelerator,
        device_memory_bytes=device_memory_bytes or HARDWARE[accelerator].memory_bytes,
    )


def _check_quantised(accelerator: AcceleratorKind, zero_stage: int) -> None:
    if accelerator == "cpu":
        raise PlanError(
            "CannotQuantise",
            "method.type",
            "qlora holds the base in 4 bits by kernels of CUDA devices, and workers.accelerator.kind is cpu; use lora",
        )
    if zero_stage == 3:
        raise PlanError(
            "CannotQuantise",
            "training.zeroStage",
            "stage 3 shares out weights, and those of qlora's base are packed in 4 bits; use stage 2 or less",
        )
