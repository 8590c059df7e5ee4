"""Memory of a job whose ranks hold replicas: against published figures and what a model really keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trireme.planning.data_parallel import DataParallelPlan, plan_data_parallel
from trireme.planning.replica_memory import DEEPSPEED_BUCKET_BYTES, Replica, replica_memory, too_large
from trireme.planning.shape import PRESETS, LlamaShape, count_parameters

TINY = LlamaShape(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
LLAMA_65B = LlamaShape(
    vocab_size=32000, hidden_size=8192, intermediate_size=22016, num_hidden_layers=80, num_attention_heads=64
)
"""Touvron et al. 2023, table 2."""


def replica(shape: LlamaShape = TINY, **changes: Any) -> Replica:
    parameters = count_parameters(shape)
    fields = {
        "parameters": parameters,
        "trainable": parameters,
        "quantised": 0,
        "shape": shape,
        "sequence_length": 512,
        "precision": "bf16",
        "recompute": True,
        "adapter": False,
    }
    return Replica(**{**fields, **changes})


def plan(**changes: Any) -> DataParallelPlan:
    fields: dict[str, Any] = {
        "world_size": 1,
        "global_batch_size": 64,
        "micro_batch_size": 1,
        "zero_stage": 0,
        "accelerator": "a100-80g",
        "precision": "bf16",
    }
    return plan_data_parallel(**{**fields, **changes})


@pytest.mark.parametrize(("stage", "gigabytes"), [(1, 31.4), (2, 16.6), (3, 1.9)])
def test_states_are_shared_out_as_published(stage: int, gigabytes: float) -> None:
    """7.5B parameters on 64 devices: Rajbhandari et al. 2020 (ZeRO), figure 1, in units of 10^9 bytes."""
    taught = replica(parameters=7_500_000_000, trainable=7_500_000_000)
    memory = replica_memory(taught, plan(world_size=64, zero_stage=stage))
    states = memory.weights_bytes + memory.gradients_bytes + memory.optimizer_bytes - DEEPSPEED_BUCKET_BYTES["bf16"]
    assert states / 1e9 == pytest.approx(gigabytes, abs=0.06)


def test_without_zero_all_of_it_is_in_float32_and_an_adapter_needs_it_for_the_adapter_only() -> None:
    """16 bytes a trained parameter (weight, gradient, two moments), 4 more where DDP sums gradients in buckets."""
    one = replica_memory(replica(precision="fp32"), plan(precision="fp32"))
    assert one.weights_bytes + one.gradients_bytes + one.optimizer_bytes == 16 * count_parameters(TINY)
    two = replica_memory(replica(precision="fp32"), plan(precision="fp32", world_size=2))
    assert two.gradients_bytes == 2 * one.gradients_bytes
    adapter = replica_memory(replica(precision="fp32", trainable=100, adapter=True), plan(precision="fp32"))
    assert adapter.weights_bytes == one.weights_bytes
    assert (adapter.gradients_bytes, adapter.optimizer_bytes) == (400, 800)


def test_a_model_of_65b_is_taught_on_48_gib_in_4_bits_and_not_in_16() -> None:
    """Dettmers et al. 2023 (QLoRA), abstract: 65B on one 48 GB GPU; all of it in 16 bits needs over 780 GB."""
    linear = LLAMA_65B.num_hidden_layers * (4 * 8192 * 8192 + 3 * 8192 * 22016)
    adapter = 80 * 8 * (4 * 2 * 8192 + 3 * (8192 + 22016))
    total = count_parameters(LLAMA_65B) + adapter
    lora = replica(LLAMA_65B, parameters=total, trainable=adapter, adapter=True)
    qlora = replica(LLAMA_65B, parameters=total, trainable=adapter, adapter=True, quantised=linear)
    of_l40s = plan(accelerator="l40s")
    assert too_large(qlora, of_l40s, replica_memory(qlora, of_l40s)) is None
    problem = too_large(lora, of_l40s, replica_memory(lora, of_l40s))
    assert problem is not None
    assert "48.0 GiB are there" in problem
    whole = replica_memory(replica(LLAMA_65B), plan())
    assert whole.total_bytes > 780 * 10**9


def test_a_refusal_has_the_numbers_and_what_a_smaller_micro_batch_needs() -> None:
    taught = replica(PRESETS["llama3-8b"], recompute=False, sequence_length=8192)
    of_eight = plan(micro_batch_size=8, world_size=8, zero_stage=3)
    problem = too_large(taught, of_eight, replica_memory(taught, of_eight))
    assert problem is not None
    assert problem.startswith("8,030,261,248 parameters, 8,030,261,248 of them trained, need ")
    assert "80.0 GiB are there (weights 1.9, gradients " in problem
    assert "micro-batch 8 x 8192 tokens, ZeRO stage 3 over 8 ranks); with training.microBatchSize 1 " in problem
    unlimited = plan(accelerator="cpu", world_size=8)
    assert too_large(taught, unlimited, replica_memory(taught, unlimited)) is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_a_layer_keeps_for_its_backward_pass_is_bounded(precision: str) -> None:
    """All that autograd saves, weights left out, is at most what the formula says, and that at most three times it."""
    shape = LlamaShape(
        vocab_size=64, hidden_size=128, intermediate_size=344, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape.model_dump(exclude_none=True)))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    tokens = torch.arange(2 * 64).reshape(2, 64) % 64
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        hidden = model.model(tokens, use_cache=False).last_hidden_state
    measured = sum(storage.nbytes() for storage in saved.values())
    assert hidden.requires_grad
    taught = replica(shape, precision=precision, recompute=False, sequence_length=64)
    bound = replica_memory(taught, plan(accelerator="cpu", precision=precision, micro_batch_size=2)).activations_bytes
    # Autocast's copies of the weights are saved too, and counted with the weights.
    copies = 2 * shape.num_hidden_layers * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 344) if precision == "bf16" else 0
    assert measured - copies <= bound <= 3 * (measured - copies)
