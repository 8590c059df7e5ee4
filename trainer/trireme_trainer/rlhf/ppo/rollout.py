"""A rollout: completions of a step's prompts, what they are worth, and all that the updates hold fixed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trireme.resources.algorithms import Ppo
from trireme_trainer.metrics.parts import REWARD, PartClock
from trireme_trainer.rlhf.data import Prompt
from trireme_trainer.rlhf.ppo.estimates import Total, generalized_advantages, token_rewards, whiten
from trireme_trainer.rlhf.ppo.losses import logprobs_of
from trireme_trainer.rlhf.ppo.model import ActorCritic, Reference, Sequences
from trireme_trainer.rlhf.ppo.sampling import draw, join, sample_seed
from trireme_trainer.rlhf.rewards.batch import Completions, RewardSum, Scores
from trireme_trainer.rlhf.scoring import as_completions

DRAWN_AT_ONCE = 4
"""Micro-batches that are drawn at once: without gradients a row needs less memory. A judgement."""


@dataclass(frozen=True)
class Rollout:
    """Of one rank. Tensors are [batch, completion]; nothing of it changes during the updates."""

    sequences: Sequences
    logprobs: torch.Tensor
    """Of the policy that drew."""
    reference: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    completions: Completions
    scores: Scores

    def __len__(self) -> int:
        return len(self.logprobs)


class Sampler:
    """Draws completions and has them scored."""

    def __init__(
        self,
        tokenizer: Any,
        rewards: RewardSum,
        *,
        temperature: float,
        max_new_tokens: int,
        rows_at_once: int,
        alive: Callable[[], None] = lambda: None,
        parts: PartClock | None = None,
    ) -> None:
        self._parts = parts or PartClock("cpu")
        self._tokenizer, self._rewards = tokenizer, rewards
        self._temperature, self._most, self._rows = temperature, max_new_tokens, rows_at_once
        self._alive = alive
        self._end = int(tokenizer.eos_token_id)

    @property
    def end(self) -> int:
        """The end-of-text token, which also pads."""
        return self._end

    def draw(self, actor: ActorCritic, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[list[int]]:
        """A completion for each prompt."""
        drawn: list[list[int]] = []
        for begin in range(0, len(prompts), self._rows):
            some = slice(begin, begin + self._rows)
            with actor.precision():
                drawn += draw(
                    actor.policy,
                    [prompt.tokens for prompt in prompts[some]],
                    seeds=seeds[some],
                    temperature=self._temperature,
                    max_new_tokens=self._most,
                    end=self._end,
                    alive=self._alive,
                )
        return drawn

    def completions(self, prompts: Sequence[Prompt], drawn: Sequence[Sequence[int]]) -> Completions:
        """As texts."""
        return as_completions(prompts, drawn, self._tokenizer)

    def score(self, completions: Completions) -> Scores:
        """What they are worth. Raises RewardFailed."""
        with self._parts.part(REWARD):
            return self._rewards.score(completions, self._alive)


def seeds_of(seed: int, step: int, first: int, count: int) -> list[int]:
    """Seeds of the samples with these numbers in a step's global batch."""
    return [sample_seed(seed, step, first + number) for number in range(count)]


def roll_out(
    actor: ActorCritic,
    reference: Reference,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    how: Ppo,
    *,
    micro_batch_size: int,
    total: Total,
    alive: Callable[[], None] = lambda: None,
) -> Rollout:
    """Draw, score and judge a completion of each of this rank's prompts. Collective. Raises RewardFailed."""
    drawn = sampler.draw(actor, prompts, seeds)
    completions = sampler.completions(prompts, drawn)
    scores = sampler.score(completions)
    device = actor.value_head.weight.device
    sequences = join([prompt.tokens for prompt in prompts], drawn, sampler.end, device)
    logprobs, values, held = judge(actor, reference, sequences, micro_batch_size, alive)
    return finish(sequences, logprobs, values, held, completions, scores, how, total)


def finish(
    sequences: Sequences,
    logprobs: torch.Tensor,
    values: torch.Tensor,
    reference: torch.Tensor,
    completions: Completions,
    scores: Scores,
    how: Ppo,
    total: Total,
) -> Rollout:
    """Advantages and returns of what was drawn and judged. Collective where advantages are whitened."""
    mask = sequences.mask
    worth = torch.tensor(scores.total, dtype=values.dtype, device=values.device)
    rewards = token_rewards(worth, logprobs, reference, mask, how.kl_coefficient)
    advantages, returns = generalized_advantages(rewards, values, mask, how.gamma, how.lambda_)
    if how.whiten_advantages:
        advantages = whiten(advantages, mask, total)
    return Rollout(sequences, logprobs, reference, values, advantages, returns, completions, scores)


@torch.no_grad()
def judge(
    actor: ActorCritic,
    reference: Reference,
    sequences: Sequences,
    micro_batch_size: int,
    alive: Callable[[], None] = lambda: None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(log-probabilities, values, the reference's log-probabilities), by the passes that the updates make as well."""
    found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    for chosen in torch.split(torch.arange(len(sequences.tokens), device=sequences.tokens.device), micro_batch_size):
        some = sequences.rows(chosen)
        logits, values = actor(some)
        found.append((logprobs_of(logits, some.completions), values, reference.logprobs(some)))
        alive()
    logprobs, values, held = (torch.cat(parts) for parts in zip(*found, strict=True))
    return logprobs, values, held
