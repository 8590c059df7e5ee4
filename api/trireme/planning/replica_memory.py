"""Bytes on a device of a job whose ranks each hold a replica, or a ZeRO share of it, of trained and frozen weights."""

from dataclasses import dataclass

from trireme.planning.data_parallel import DataParallelPlan
from trireme.planning.memory import (
    CPU_CONTEXT_BYTES,
    FRAGMENTATION,
    GIB,
    GPU_CONTEXT_BYTES,
    WEIGHT_BYTES,
    layer_activation_bytes,
)
from trireme.planning.shape import LlamaShape
from trireme.planning.types import DeviceMemory

QUANTISED_BYTES = (4 + 0.127) / 8
"""Of a weight in 4-bit NormalFloat, with its doubly quantised constants. Dettmers et al. 2023 (QLoRA), section 3."""
DEEPSPEED_BUCKET_BYTES = {"bf16": 2 * 5 * 10**8, "fp32": 4 * 5 * 10**8}
"""At most: reduce_bucket_size, 5e8 elements by default, which are gathered before they are sent."""


@dataclass(frozen=True)
class Replica:
    """What the memory of a replica depends on, beside the plan."""

    parameters: int
    """Of the whole model, the adapter's included."""
    trainable: int
    quantised: int
    """Of the frozen ones, those held in 4 bits."""
    shape: LlamaShape
    sequence_length: int
    precision: str
    recompute: bool
    adapter: bool
    """Frozen weights are there: they lie in the precision that is computed in."""


def replica_memory(replica: Replica, plan: DataParallelPlan, micro_batch_size: int | None = None) -> DeviceMemory:
    """Bytes by part. `micro_batch_size`: instead of the plan's.

    Without ZeRO what is trained is in float32, as are its gradients (once more in DDP's buckets) and Adam's two
    moments; autocast keeps a bfloat16 copy of each weight for a forward pass. With ZeRO it is as in Rajbhandari et al.
    2020, section 3.1 and figure 1: weights and gradients in the precision of the job, float32 master weights and
    moments shared out, and by stage also the others.
    """
    data, micro = plan.data, micro_batch_size or plan.micro_batch_size
    width, trained = WEIGHT_BYTES[replica.precision], replica.trainable
    frozen = replica.parameters - trained - replica.quantised
    # What is not quantised of a base in 4 bits (norms, embeddings) peft takes to float32.
    frozen_bytes = frozen * (4 if replica.quantised else width) + int(replica.quantised * QUANTISED_BYTES)
    if plan.zero_stage == 0:
        copies = width if replica.precision == "bf16" else 0
        weights, gradients, optimizer = trained * (4 + copies), trained * 4 * (2 if data > 1 else 1), trained * 8
    else:
        weights, gradients, optimizer = trained * width, trained * width, _share(trained * 12, data)
        if plan.zero_stage >= 2:
            gradients = _share(gradients, data)
        if plan.zero_stage == 3:
            weights, frozen_bytes = _share(weights, data), _share(frozen_bytes, data)
        gradients += min(trained * width, DEEPSPEED_BUCKET_BYTES[replica.precision])
    activations, logits = _activations(replica, micro, on_cpu=plan.accelerator == "cpu"), _logits(replica, micro)
    used = weights + frozen_bytes + gradients + optimizer + activations + logits
    overhead = (CPU_CONTEXT_BYTES if plan.accelerator == "cpu" else GPU_CONTEXT_BYTES) + int(used * FRAGMENTATION)
    return DeviceMemory(
        weights_bytes=weights + frozen_bytes,
        gradients_bytes=gradients,
        optimizer_bytes=optimizer,
        activations_bytes=activations,
        logits_bytes=logits,
        overhead_bytes=overhead,
        total_bytes=used + overhead,
        available_bytes=plan.device_memory_bytes,
    )


def _share(size: int, data: int) -> int:
    return -(-size // data)


def _activations(replica: Replica, micro: int, *, on_cpu: bool) -> int:
    """Upper bound, as of the planner's Llama layers; with recomputation each layer keeps its input, one is whole.

    No kernels are fused here, and norms compute in float32: their float32 input and output are kept besides. A low-rank
    adapter keeps what its dropout gives and, in float32, what it multiplies: counted as another copy of the inputs.
    """
    shape, width = replica.shape, WEIGHT_BYTES[replica.precision]
    tokens = micro * replica.sequence_length
    layer = layer_activation_bytes(shape, tokens, 1, replica.precision, fused=False)
    if replica.precision == "bf16":
        layer += tokens * 4 * 4 * shape.hidden_size
    if replica.adapter:
        layer += tokens * 4 * (2 * shape.hidden_size + shape.intermediate_size)
    boundary = tokens * shape.hidden_size * width
    if replica.recompute:
        return (shape.num_hidden_layers + 1) * boundary + layer
    return shape.num_hidden_layers * layer + boundary


def _logits(replica: Replica, micro: int) -> int:
    """Upper bound: where they are held whole, with a float32 copy and the gradient of it."""
    tokens = micro * replica.sequence_length
    return tokens * replica.shape.vocab_size * (WEIGHT_BYTES[replica.precision] + 8)


def too_large(replica: Replica, plan: DataParallelPlan, memory: DeviceMemory) -> str | None:
    """Why a device cannot hold it, with the numbers and what would help; None when it can."""
    if memory.available_bytes is None or memory.total_bytes <= memory.available_bytes:
        return None
    parts = {
        "weights": memory.weights_bytes,
        "gradients": memory.gradients_bytes,
        "optimizer": memory.optimizer_bytes,
        "activations": memory.activations_bytes,
        "logits": memory.logits_bytes,
        "overhead": memory.overhead_bytes,
    }
    counted = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
    least = replica_memory(replica, plan, 1).total_bytes
    smaller = f"; with training.microBatchSize 1 {least / GIB:.1f} GiB" if plan.micro_batch_size > 1 else ""
    return (
        f"{replica.parameters:,} parameters, {replica.trainable:,} of them trained, need "
        f"{memory.total_bytes / GIB:.1f} GiB on a device and {memory.available_bytes / GIB:.1f} GiB are there "
        f"({counted} GiB; micro-batch {plan.micro_batch_size} x {replica.sequence_length} tokens, ZeRO stage "
        f"{plan.zero_stage} over {plan.data} ranks){smaller}"
    )
