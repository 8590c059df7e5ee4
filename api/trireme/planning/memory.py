"""Bytes on the fullest device of a layout: states, activations, logits, overhead."""

from dataclasses import dataclass
from typing import Literal

from trireme.planning.shape import LlamaShape, embedding_parameters, layer_parameters
from trireme.planning.types import DeviceMemory

GIB = 1024**3
WEIGHT_BYTES = {"bf16": 2, "fp32": 4}
GRADIENT_BYTES = {"bf16": 2, "fp32": 4}
OPTIMIZER_BYTES = {"bf16": 12, "fp32": 8}
"""bf16: master weight and Adam's two moments in float32; in fp32 the weights are their own master copy."""
STATE_BYTES = 16
"""Weights, gradients, optimizer, in either precision: 2 + 2 + K, K = 12. Rajbhandari et al. 2020 (ZeRO), 3.1."""
GRADIENT_BUFFER_BYTES = {"bf16": 2, "fp32": 0}
"""Megatron-core sums gradients in float32: 2 bytes more than ZeRO's count where gradients are bfloat16."""

GPU_CONTEXT_BYTES = 2 * GIB
CPU_CONTEXT_BYTES = GIB // 2
"""Driver context and communication buffers; interpreter and libraries of a rank on a CPU."""
FRAGMENTATION = 0.05
"""Share of everything else that the allocator cannot hand out."""

Recompute = Literal["none", "full"]


@dataclass(frozen=True)
class Layout:
    """One candidate: the axes' sizes and what a rank does with a micro-batch."""

    tensor: int
    pipeline: int
    data: int
    micro_batch_size: int
    accumulation_steps: int
    recompute: Recompute

    @property
    def bubble_ratio(self) -> float:
        """Idle share of a 1F1B pipeline's time, (p-1)/(p-1+m). Huang et al. 2019 (GPipe), section 2; same in 1F1B."""
        idle = self.pipeline - 1
        return idle / (idle + self.accumulation_steps)


def zero_bytes_per_parameter(stage: int, data: int) -> float:
    """Bytes of states per parameter and device in ZeRO stages 0 to 3. Rajbhandari et al. 2020, figure 1."""
    weights, gradients, optimizer = 2.0, 2.0, 12.0
    return (
        weights / (data if stage >= 3 else 1)
        + gradients / (data if stage >= 2 else 1)
        + optimizer / (data if stage >= 1 else 1)
    )


def stage_parameters(shape: LlamaShape, tensor: int, pipeline: int, stage: int) -> int:
    """Parameters on one device of a pipeline stage. Embedding on the first stage; norm and output on the last."""
    total = shape.num_hidden_layers // pipeline * layer_parameters(shape, tensor)
    matrix = embedding_parameters(shape) // tensor
    first, last = stage == 0, stage == pipeline - 1
    if first:
        total += matrix
    if last:
        total += shape.hidden_size
        if not (shape.tie_word_embeddings and first):  # a tied last stage keeps a copy of its own
            total += matrix
    return total


def layer_activation_bytes(shape: LlamaShape, tokens: int, tensor: int, precision: str, fused: bool = True) -> int:
    """Upper bound of what one layer keeps for its backward pass, for `tokens` = micro-batch x sequence length.

    Counted as Korthikanti et al. 2022 (arXiv:2205.05198), section 4.1, sbh(10 + 24/t + 5as/(ht)), for this layer
    without dropout: two norms' inputs and outputs on every device; query, key, value before and after rotation, keys
    and values repeated for grouped queries, attention output (twice: as kept by the kernel and as input of the
    projection); gate, up, their activation and product. Without fused kernels (on CPU) a norm keeps its normalised
    input too, and the activation one more intermediate. The 5as/h term is absent: flash kernels store no scores,
    only one float per token and head.
    """
    query = shape.num_attention_heads * shape.head_size
    key_value = shape.key_value_heads * shape.head_size
    replicated = (4 if fused else 6) * shape.hidden_size
    shared = 2 * (query + 2 * key_value) + 4 * query + (4 if fused else 5) * shape.intermediate_size
    statistics = 4 * (shape.num_attention_heads // tensor + 2)
    return tokens * (WEIGHT_BYTES[precision] * (replicated + -(-shared // tensor)) + statistics)


def activation_bytes(
    shape: LlamaShape, layout: Layout, sequence_length: int, precision: str, stage: int, fused: bool = True
) -> int:
    """Upper bound of the activations on a device of a stage; 1F1B keeps at most p - stage micro-batches in flight.

    With full recomputation each layer keeps its input, and one layer at a time is whole.
    Narayanan et al. 2021 (arXiv:2104.04473), sections 2.2.1 and 3.5.
    """
    tokens = layout.micro_batch_size * sequence_length
    in_flight = min(layout.pipeline - stage, layout.accumulation_steps)
    layers = shape.num_hidden_layers // layout.pipeline
    boundary = tokens * shape.hidden_size * WEIGHT_BYTES[precision]
    layer = layer_activation_bytes(shape, tokens, layout.tensor, precision, fused)
    if layout.recompute == "full":
        return in_flight * (layers + 1) * boundary + layer
    return in_flight * (layers * layer + boundary)


def logits_bytes(shape: LlamaShape, layout: Layout, sequence_length: int, precision: str) -> int:
    """Upper bound on the last stage: logits, their float32 copy, its softmax (as gradient) and the norm around them."""
    tokens = layout.micro_batch_size * sequence_length
    vocabulary = -(-shape.vocab_size // layout.tensor)
    return tokens * (vocabulary * (2 * WEIGHT_BYTES[precision] + 8) + 2 * shape.hidden_size * WEIGHT_BYTES[precision])


def device_memory(
    shape: LlamaShape,
    layout: Layout,
    sequence_length: int,
    precision: str,
    available_bytes: int | None,
    on_cpu: bool,
) -> DeviceMemory:
    """Bytes by part on the fullest device; only the first and the last stage can be it."""
    stages = {0, layout.pipeline - 1}
    rows = [
        _stage_memory(shape, layout, sequence_length, precision, stage, available_bytes, on_cpu) for stage in stages
    ]
    return max(rows, key=lambda row: row.total_bytes)


def _stage_memory(
    shape: LlamaShape,
    layout: Layout,
    sequence_length: int,
    precision: str,
    stage: int,
    available_bytes: int | None,
    on_cpu: bool,
) -> DeviceMemory:
    parameters = stage_parameters(shape, layout.tensor, layout.pipeline, stage)
    weights = parameters * WEIGHT_BYTES[precision]
    gradients = parameters * (GRADIENT_BYTES[precision] + GRADIENT_BUFFER_BYTES[precision])
    optimizer = -(-parameters * OPTIMIZER_BYTES[precision] // layout.data)
    activations = activation_bytes(shape, layout, sequence_length, precision, stage, fused=not on_cpu)
    last = stage == layout.pipeline - 1
    logits = logits_bytes(shape, layout, sequence_length, precision) if last else 0
    used = weights + gradients + optimizer + activations + logits
    overhead = (CPU_CONTEXT_BYTES if on_cpu else GPU_CONTEXT_BYTES) + int(used * FRAGMENTATION)
    return DeviceMemory(
        weights_bytes=weights,
        gradients_bytes=gradients,
        optimizer_bytes=optimizer,
        activations_bytes=activations,
        logits_bytes=logits,
        overhead_bytes=overhead,
        total_bytes=used + overhead,
        available_bytes=available_bytes,
    )
