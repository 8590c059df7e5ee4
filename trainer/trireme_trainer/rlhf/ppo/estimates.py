"""From scores and log-probabilities to advantages and returns. All tensors are [batch, tokens] of completions.

`mask` is True at the tokens that the policy drew, the end-of-text token included; they stand at the front of each row.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

Total = Callable[..., list[float]]
"""Sums of some numbers over all ranks."""
STD_EPSILON = 1e-8


def last_token(mask: torch.Tensor) -> torch.Tensor:
    """The position of each row's last token, [batch]."""
    return mask.long().sum(dim=1) - 1


def token_rewards(
    scores: torch.Tensor, logprobs: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor, kl_coefficient: float
) -> torch.Tensor:
    """The reward of each token: -beta log(pi/rho), and at the last one the completion's score as well.

    `scores`: [batch]. Ziegler et al. 2019, eq. 2, whose penalty is given out token by token.
    """
    rewards = torch.where(mask, -kl_coefficient * (logprobs - reference), 0.0)
    rows = torch.arange(len(scores), device=scores.device)
    rewards[rows, last_token(mask)] += scores.to(rewards.dtype)
    return rewards


def generalized_advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lambda_: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(advantages, returns). The value after a row's last token is 0.

    delta_t = r_t + gamma V_{t+1} - V_t; A_t = delta_t + gamma lambda A_{t+1}; R_t = A_t + V_t
    (Schulman et al. 2016, eq. 16; 2017, eq. 11). Outside the mask all are 0.
    """
    values = torch.where(mask, values, 0.0)
    rewards = torch.where(mask, rewards, 0.0)
    advantages = torch.zeros_like(values)
    after, next_value = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for t in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        after = torch.where(mask[:, t], delta + gamma * lambda_ * after, 0.0)
        advantages[:, t], next_value = after, values[:, t]
    return advantages, advantages + values


def whiten(values: torch.Tensor, mask: torch.Tensor, total: Total) -> torch.Tensor:
    """Shift and scale to mean 0 and standard deviation 1 over the masked tokens of all ranks; 0 outside the mask.

    With Bessel's correction. A single token is only shifted.
    """
    chosen = values[mask].double()
    count, summed = total(float(chosen.numel()), float(chosen.sum()))
    mean = summed / max(1.0, count)
    (squares,) = total(float((chosen - mean).square().sum()))
    shifted = torch.where(mask, values - mean, 0.0)
    if count < 2:
        return shifted
    return shifted / (math.sqrt(squares / (count - 1)) + STD_EPSILON)


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, total: Total) -> float:
    """1 - Var[R - V] / Var[R] over the masked tokens of all ranks: 1 is perfect, 0 as good as the mean; 0 where R is
    constant.
    """
    wanted, missed = returns[mask].double(), (returns - values)[mask].double()
    count, wanted_sum, missed_sum = total(float(wanted.numel()), float(wanted.sum()), float(missed.sum()))
    count = max(1.0, count)
    spread, left = total(
        float((wanted - wanted_sum / count).square().sum()), float((missed - missed_sum / count).square().sum())
    )
    return 1.0 - left / spread if spread > 0 else 0.0


class KlStop:
    """Ends the updates with a batch once the mean KL of the last `patience` updates exceeds the threshold."""

    def __init__(self, threshold: float, patience: int) -> None:
        self._threshold, self._patience = threshold, patience
        self._seen: list[float] = []

    def exceeded(self, kl: float) -> bool:
        """Take an update's KL into account."""
        self._seen = [*self._seen, kl][-self._patience :]
        return len(self._seen) == self._patience and sum(self._seen) / self._patience > self._threshold
