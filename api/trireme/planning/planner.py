"""The planner: of all legal layouts that fit, the one with the least estimated step time."""

import math

from trireme.planning.hardware import HARDWARE, Hardware
from trireme.planning.layouts import layouts
from trireme.planning.memory import GIB, WEIGHT_BYTES, Layout, device_memory, stage_parameters
from trireme.planning.shape import count_parameters, embedding_parameters, layer_parameters
from trireme.planning.types import DeviceMemory, Plan, PlanError, PlanRequest

LAUNCH_TOKENS = 256
"""Fixed cost of a micro-batch (kernel launches, small matrices) as the time of so many tokens; a judgement."""
USUAL_EFFICIENCY = 0.5
"""Share of the peak rate that matrix products reach; only the ratio of compute to communication depends on it."""
UNKNOWN_LINK_COST = 0.1
"""Communication per doubling of the tensor axis, relative to compute, where the hardware table has no numbers."""
MAX_NODES = 4096


def plan(request: PlanRequest) -> Plan:
    """Choose the layout of a job. Raises PlanError with a reason, a field and the numbers.

    Rule (after Narayanan et al. 2021, arXiv:2104.04473, takeaways 1 to 3): tensor parallelism inside a node only; the
    smallest model parallelism that fits, because tensor communication, pipeline bubble and recomputation each cost
    time while data parallelism is nearly free; between layouts that fit, the least estimated step time.
    """
    candidates = layouts(request)
    fitting = [(layout, memory) for layout in candidates if _fits(memory := _memory(request, layout))]
    if not fitting:
        raise _does_not_fit(request, candidates)
    layout, memory = min(fitting, key=lambda pair: _preference(request, pair[0]))
    return _plan(request, layout, memory, f"{len(fitting)} of {len(candidates)} legal layouts fit")


def available_bytes(request: PlanRequest) -> int | None:
    """Memory of one device in bytes; None where nothing limits it."""
    if request.device_memory_bytes is not None:
        return request.device_memory_bytes
    return HARDWARE[request.accelerator].memory_bytes


def relative_step_time(request: PlanRequest, layout: Layout) -> float:
    """Estimated time of a step against perfect scaling: recomputation, bubble, tensor communication, uneven stages,
    small micro-batches.

    Full recomputation: one forward pass more, 4/3 of the operations (Narayanan et al. 2021, section 3.5). Bubble:
    1 / (1 - (p-1)/(p-1+m)) (section 2.2.1). Tensor: four all-reduces of the layer's activations per layer and
    micro-batch (section 2.3) over the links of a node.
    """
    recompute = 4 / 3 if layout.recompute == "full" else 1.0
    bubble = 1 / (1 - layout.bubble_ratio)
    tokens = layout.micro_batch_size * request.sequence_length
    small = 1 + LAUNCH_TOKENS / tokens
    return (recompute + _tensor_cost(request, layout)) * bubble * small * _imbalance(request, layout)


def _imbalance(request: PlanRequest, layout: Layout) -> float:
    """Operations of the last stage, which has the output layer too, against the mean: all move at its pace."""
    shape = request.model
    layers = shape.num_hidden_layers * layer_parameters(shape)
    output = embedding_parameters(shape)
    return (layers / layout.pipeline + output) / ((layers + output) / layout.pipeline)


def _tensor_cost(request: PlanRequest, layout: Layout) -> float:
    """Time of the tensor axis's all-reduces relative to the layer's forward and backward compute."""
    if layout.tensor == 1:
        return 0.0
    hardware: Hardware = HARDWARE[request.accelerator]
    peak, link = hardware.peak_tflops(request.precision), hardware.intra_node_gigabytes_per_second
    if peak is None or link is None:
        return UNKNOWN_LINK_COST * math.log2(layout.tensor)
    shape = request.model
    token_bytes = shape.hidden_size * WEIGHT_BYTES[request.precision]
    ring = 2 * (layout.tensor - 1) / layout.tensor
    seconds = 4 * ring * token_bytes / (link / 2 * 1e9)
    compute = 6 * layer_parameters(shape) / layout.tensor / (peak * 1e12 * USUAL_EFFICIENCY)
    return seconds / compute


def _preference(request: PlanRequest, layout: Layout) -> tuple[float, int, int, int]:
    time = round(relative_step_time(request, layout), 6)
    return (time, layout.tensor * layout.pipeline, layout.pipeline, layout.micro_batch_size)


def _memory(request: PlanRequest, layout: Layout) -> DeviceMemory:
    return device_memory(
        request.model,
        layout,
        request.sequence_length,
        request.precision,
        available_bytes(request),
        on_cpu=request.accelerator == "cpu",
    )


def _fits(memory: DeviceMemory) -> bool:
    return memory.available_bytes is None or memory.total_bytes <= memory.available_bytes


def _plan(request: PlanRequest, layout: Layout, memory: DeviceMemory, counts: str) -> Plan:
    asked = [axis for axis in ("tensor", "pipeline", "data") if getattr(request, axis) != "auto"]
    how = f"{', '.join(asked)} as asked" if asked else "all axes chosen"
    rule = (
        f"{counts}; {how}; least estimated step time, {relative_step_time(request, layout):.2f} of perfect scaling's, "
        f"with model parallelism {layout.tensor * layout.pipeline}"
    )
    shape = request.model
    stages = {0, layout.pipeline - 1}
    return Plan(
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        data=layout.data,
        micro_batch_size=layout.micro_batch_size,
        accumulation_steps=layout.accumulation_steps,
        recompute=layout.recompute,
        distributed_optimizer=layout.data > 1,
        zero_stage=1 if layout.data > 1 else 0,
        parameters=count_parameters(shape),
        parameters_per_device=max(stage_parameters(shape, layout.tensor, layout.pipeline, s) for s in stages),
        memory=memory,
        bubble_ratio=layout.bubble_ratio,
        engine=request.engine,
        accelerator=request.accelerator,
        rule=rule,
    )


def _does_not_fit(request: PlanRequest, candidates: list[Layout]) -> PlanError:
    leanest = min(_leanest(candidates), key=lambda layout: _memory(request, layout).total_bytes)
    memory = _memory(request, leanest)
    assert memory.available_bytes is not None
    enough = smallest_nodes(request)
    advice = f"{enough} nodes would do" if enough else f"no number of such nodes up to {MAX_NODES} would do"
    return PlanError(
        "DoesNotFit",
        "workers",
        f"{count_parameters(request.model):,} parameters need {memory.total_bytes / GIB:.1f} GiB on a device and "
        f"{memory.available_bytes / GIB:.1f} GiB are there (leanest layout: tensor {leanest.tensor} x pipeline "
        f"{leanest.pipeline} x data {leanest.data}, micro-batch {leanest.micro_batch_size}, recompute "
        f"{leanest.recompute}); "
        f"with {request.nodes} nodes of {request.devices_per_node} {request.accelerator}: {advice}",
    )


def smallest_nodes(request: PlanRequest) -> int | None:
    """The smallest number of nodes, above the one asked for, that some layout fits on; sizes asked for stay.

    Every number up to 64 is tried, then powers of two up to MAX_NODES.
    """
    counts: list[int] = [*range(request.nodes + 1, 65), *(1 << k for k in range(7, 13))]
    for nodes in counts:
        if nodes <= request.nodes:
            continue
        larger: PlanRequest = request.model_copy(update={"nodes": nodes, "data": "auto"})
        try:
            candidates = layouts(larger)
        except PlanError:
            continue
        if any(_fits(_memory(larger, layout)) for layout in _leanest(candidates)):
            return nodes
    return None


def _leanest(candidates: list[Layout]) -> list[Layout]:
    """Of each grid only the candidate that needs least: smallest micro-batch, recomputation where allowed."""
    best: dict[tuple[int, int], Layout] = {}
    for layout in candidates:
        key = (layout.tensor, layout.pipeline)
        held = best.get(key)
        if held is None or (layout.micro_batch_size, layout.recompute) < (held.micro_batch_size, held.recompute):
            best[key] = layout
    return list(best.values())
