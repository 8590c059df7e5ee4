"""Floating-point operations of a Llama-shaped model, counted from its matrix products."""

from __future__ import annotations

from typing import Protocol


class FlopsShape(Protocol):
    """The shape fields that matter here, under their Hugging Face names."""

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""

    @property
    def intermediate_size(self) -> int:
        """Width of the gated feed-forward layer."""

    @property
    def num_hidden_layers(self) -> int:
        """Transformer layers."""

    @property
    def num_attention_heads(self) -> int:
        """Query heads."""

    @property
    def num_key_value_heads(self) -> int | None:
        """Key and value heads; None: as many as query heads."""

    @property
    def head_dim(self) -> int | None:
        """Width of one head; None: hidden_size / num_attention_heads."""


def forward_flops_per_token(shape: FlopsShape, sequence_length: int) -> float:
    """Operations of one token's forward pass, 2 per multiply-add; norms, rotary and softmax are not counted.

    Attention is counted as the full sequence_length x sequence_length product although the mask is causal: the
    convention of Chowdhery et al. 2022 (PaLM), appendix B, and Narayanan et al. 2021 (Megatron-LM), appendix.
    The embedding look-up multiplies nothing; the output projection does, tied or not.
    """
    head = shape.head_dim or shape.hidden_size // shape.num_attention_heads
    query_width = head * shape.num_attention_heads
    key_value_width = head * (shape.num_key_value_heads or shape.num_attention_heads)
    attention_weights = shape.hidden_size * (2 * query_width + 2 * key_value_width)
    feed_forward_weights = 3 * shape.hidden_size * shape.intermediate_size
    scores_and_context = 2 * query_width * sequence_length
    per_layer = attention_weights + feed_forward_weights + scores_and_context
    multiply_adds = shape.num_hidden_layers * per_layer + shape.hidden_size * shape.vocab_size
    return 2.0 * multiply_adds


def training_flops_per_token(shape: FlopsShape, sequence_length: int) -> float:
    """Forward plus backward operations of one trained token: the backward pass is two forward passes.

    Recomputed activations are not counted: this is the numerator of model FLOPs utilisation (PaLM, appendix B).
    """
    return 3.0 * forward_flops_per_token(shape, sequence_length)
