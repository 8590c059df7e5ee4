"""The losses of PPO, token by token: [batch, tokens], to be masked and averaged by whoever sums them."""

from __future__ import annotations

import torch


def policy_loss(
    logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, clip_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, whether clipping took effect): -min(r A, clip(r, 1 - eps, 1 + eps) A) with r = pi / pi_old.

    Schulman et al. 2017, eq. 7.
    """
    ratio = torch.exp(logprobs - old)
    plain = ratio * advantages
    clipped = torch.clamp(ratio, 1 - clip_range, 1 + clip_range) * advantages
    return -torch.minimum(plain, clipped), clipped < plain


def value_loss(
    values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, clip_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, whether clipping took effect): half of the larger squared error of V and of V kept near its old value.

    Huang et al. 2024, "value function loss clipping".
    """
    near = old + torch.clamp(values - old, -clip_range, clip_range)
    plain, clipped = (values - returns).square(), (near - returns).square()
    return 0.5 * torch.maximum(plain, clipped), clipped > plain


def approximate_kl(logprobs: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """An estimate of KL(pi_old || pi) from tokens that pi_old drew, never negative: (r - 1) - log r."""
    difference = logprobs - old
    return torch.expm1(difference) - difference


def logprobs_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log pi of each token, in float32 or wider; logits [batch, tokens, vocabulary]."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - torch.logsumexp(logits, dim=-1)


def entropy_of(logits: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of each distribution; logits [batch, tokens, vocabulary]."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return torch.logsumexp(logits, dim=-1) - (torch.softmax(logits, dim=-1) * logits).sum(dim=-1)
