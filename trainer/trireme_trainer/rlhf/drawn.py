"""Prompts as a model completes them, and where a completion ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def pad_left(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, attention) of prompts, [batch, longest]."""
    width = max(map(len, prompts))
    tokens = torch.full((len(prompts), width), pad, dtype=torch.long)
    attention = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(prompt)
        attention[row, width - len(prompt) :] = 1
    return tokens.to(device), attention.to(device)


def until_end(tokens: list[int], end: int) -> list[int]:
    """Up to and with the first end-of-text token: what follows it is padding."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens
