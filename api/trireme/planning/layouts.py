"""Legal layouts: what divides what. A layout that is not listed here cannot be trained."""

from trireme.planning.hardware import HARDWARE, AcceleratorKind
from trireme.planning.memory import Layout, Recompute
from trireme.planning.shape import LlamaShape
from trireme.planning.types import PlanError, PlanRequest

Grid = tuple[int, int, int]
"""Sizes of tensor, pipeline, data."""


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def check_supported(request: PlanRequest) -> None:
    """Raise PlanError NotYetSupported for what the engines cannot do."""
    if request.engine != "megatron":
        raise PlanError(
            "NotYetSupported", "parallelism.engine", f"engine {request.engine!r} is not available yet; use 'megatron'"
        )
    if request.context not in ("auto", 1):
        raise PlanError(
            "NotYetSupported",
            "parallelism.context",
            f"context {request.context}: splitting sequences is not available yet; use 1",
        )


def check_precision(accelerator: AcceleratorKind, precision: str) -> None:
    """Raise PlanError PrecisionNotAvailable where the device has no units for it."""
    hardware = HARDWARE[accelerator]
    on_device = hardware.memory_bytes is not None
    if on_device and hardware.peak_tflops(precision) is None:
        raise PlanError(
            "PrecisionNotAvailable",
            "training.precision",
            f"{accelerator} does not compute in {precision}; use fp32 "
            f"({hardware.fp32_tflops} TFLOP/s) or another accelerator",
        )


def tensor_problem(shape: LlamaShape, tensor: int, devices_per_node: int) -> PlanError | None:
    """Why the tensor axis cannot have this size, or None."""
    field = "parallelism.tensor"
    if tensor > devices_per_node or devices_per_node % tensor:
        return PlanError(
            "TensorBeyondNode",
            field,
            f"tensor {tensor} does not divide the {devices_per_node} devices of a node; it must stay inside one",
        )
    rows = (
        ("HeadsNotDivisible", "num_attention_heads", shape.num_attention_heads),
        ("HeadsNotDivisible", "num_key_value_heads", shape.key_value_heads),
        ("IntermediateNotDivisible", "intermediate_size", shape.intermediate_size),
        ("VocabularyNotDivisible", "vocab_size", shape.vocab_size),
    )
    for reason, name, size in rows:
        if size % tensor:
            return PlanError(reason, field, f"{name} {size} is not divisible by tensor {tensor}")
    return None


def grids(request: PlanRequest) -> list[Grid]:
    """All (tensor, pipeline, data) whose product is the world size and that the shape allows. Raises PlanError."""
    shape, world = request.model, request.world_size
    layers = shape.num_hidden_layers
    if request.tensor != "auto":
        problem = tensor_problem(shape, request.tensor, request.devices_per_node)
        if problem is not None:
            raise problem
        tensors = [request.tensor]
    else:
        tensors = [
            t for t in divisors(request.devices_per_node) if not tensor_problem(shape, t, request.devices_per_node)
        ]
    if request.pipeline != "auto":
        if layers % request.pipeline:
            raise PlanError(
                "LayersNotDivisible",
                "parallelism.pipeline",
                f"num_hidden_layers {layers} is not divisible by pipeline {request.pipeline}",
            )
        pipelines = [request.pipeline]
    else:
        pipelines = divisors(layers)
    found = [
        (t, p, world // (t * p))
        for t in tensors
        for p in pipelines
        if world % (t * p) == 0 and request.data in ("auto", world // (t * p))
    ]
    if not found:
        raise PlanError("WorldSizeMismatch", "parallelism", _mismatch(request, tensors, pipelines))
    return found


def _mismatch(request: PlanRequest, tensors: list[int], pipelines: list[int]) -> str:
    asked = " x ".join(f"{axis} {getattr(request, axis)}" for axis in ("tensor", "pipeline", "data"))
    return (
        f"{asked} cannot make the world size {request.world_size} = {request.nodes} nodes x "
        f"{request.devices_per_node} devices; this model allows tensor {tensors} and pipeline {pipelines}"
    )


def layouts(request: PlanRequest) -> list[Layout]:
    """All legal layouts with micro-batch and recomputation. Raises PlanError."""
    check_supported(request)
    check_precision(request.accelerator, request.precision)
    longest = request.model.max_position_embeddings
    if longest is not None and request.sequence_length > longest:
        raise PlanError(
            "SequenceTooLong",
            "data.sequenceLength",
            f"{request.sequence_length} exceeds the model's max_position_embeddings {longest}",
        )
    recomputes: tuple[Recompute, ...] = ("none", "full") if request.recompute == "auto" else (request.recompute,)
    possible = grids(request)
    found = [
        Layout(t, p, d, micro, request.global_batch_size // (d * micro), recompute)
        for t, p, d in possible
        for micro in micro_batch_sizes(request, d)
        for recompute in recomputes
    ]
    if not found:
        micro = 1 if request.micro_batch_size == "auto" else request.micro_batch_size
        widths = sorted({d for _, _, d in possible})
        raise PlanError(
            "BatchNotDivisible",
            "training.globalBatchSize",
            f"{request.global_batch_size} is not divisible by micro-batch {micro} x data, where data may be "
            f"{', '.join(map(str, widths))}; the next multiple is "
            f"{min(-(-request.global_batch_size // (micro * d)) * micro * d for d in widths)}",
        )
    return found


def micro_batch_sizes(request: PlanRequest, data: int) -> list[int]:
    """Micro-batch sizes that divide a data-parallel rank's part of the batch: the one asked for, or powers of two."""
    if request.global_batch_size % data:
        return []
    share = request.global_batch_size // data
    if request.micro_batch_size != "auto":
        return [request.micro_batch_size] if share % request.micro_batch_size == 0 else []
    return [size for size in (1, 2, 4, 8, 16) if share % size == 0]
