"""Scaled dot-product attention as a Megatron core-attention module."""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig


class ScaledDotProductAttention(MegatronModule):  # type: ignore[misc]
    """Causal grouped-query attention through `torch.nn.functional.scaled_dot_product_attention`.

    On CUDA torch picks its flash or cuDNN kernel, on CPU its blocked one; neither stores the score matrix.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        self.layer_number = max(1, layer_number)
        self.softmax_scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **_unused: Any,
    ) -> torch.Tensor:
        """Query `[seq, batch, heads, size]`, key, value `[seq, batch, groups, size]` to `[seq, batch, heads*size]`."""
        context = torch.nn.functional.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            is_causal=True,
            scale=self.softmax_scale,
            enable_gqa=key.size(2) != query.size(2),
        )
        return context.permute(2, 0, 1, 3).reshape(query.size(0), query.size(1), -1)
