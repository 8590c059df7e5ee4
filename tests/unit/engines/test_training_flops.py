from __future__ import annotations

import pytest

from trireme.planning.flops import forward_flops_per_token, training_flops_per_token
from trireme_trainer.engines.interface import ModelShape

LLAMA_3_8B = ModelShape(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
)
EMBEDDING = 128256 * 4096
PARAMETERS = 8_030_261_248  # Llama-3-8B's published safetensors count


def test_agrees_with_palm_appendix_b() -> None:
    # 6N + 12 L H Q T, with N the parameters that multiply: all but the looked-up embedding and the norms.
    norms = (2 * 32 + 1) * 4096
    expected = 6 * (PARAMETERS - EMBEDDING - norms) + 12 * 32 * 32 * 128 * 8192
    assert training_flops_per_token(LLAMA_3_8B, 8192) == pytest.approx(expected, rel=1e-12)


def test_training_is_three_forward_passes() -> None:
    assert training_flops_per_token(LLAMA_3_8B, 512) == 3 * forward_flops_per_token(LLAMA_3_8B, 512)
