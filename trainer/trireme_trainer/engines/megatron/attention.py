"""Scaled dot-product attention as a Megatron core-attention module."""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, *, expand_groups: bool
) -> torch.Tensor:
    """Causal attention of query `[batch, heads, seq, size]` on key, value `[batch, groups, seq, size]`.

    `expand_groups`: repeat each group for its heads instead of leaving that to the kernel; the result is the same.
    """
    grouped = key.size(1) != query.size(1)
    if grouped and expand_groups:
        key, value = (t.repeat_interleave(query.size(1) // t.size(1), dim=1) for t in (key, value))
        grouped = False
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scale, enable_gqa=grouped
    )


def kernels_need_expanded_groups(device: str, dtype: torch.dtype) -> bool:
    """Whether only the kernel that stores the scores takes grouped queries as they are.

    On CUDA flash and cuDNN attention do, and want half precision; of fp32 the memory-efficient kernel takes only as
    many keys as queries.
    """
    return device == "cuda" and dtype == torch.float32


class ScaledDotProductAttention(MegatronModule):  # type: ignore[misc]
    """Causal grouped-query attention through `torch.nn.functional.scaled_dot_product_attention`.

    On CUDA torch picks its flash or cuDNN kernel, for fp32 its memory-efficient one, on CPU its blocked one; none of
    them stores the score matrix.
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
        context = attend(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            self.softmax_scale,
            expand_groups=kernels_need_expanded_groups(query.device.type, query.dtype),
        )
        return context.permute(2, 0, 1, 3).reshape(query.size(0), query.size(1), -1)
