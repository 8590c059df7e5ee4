"""Completions to score, and their scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from trireme_trainer.rlhf.rewards.errors import RewardMalformed, RewardNotFinite

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Completions:
    """Completions with what they complete; all lists have one entry each for a completion."""

    prompts: Sequence[str]
    """As the policy reads them."""
    texts: Sequence[str]
    """Without the end-of-text token."""
    lengths: Sequence[int]
    """Tokens, the end-of-text token not counted."""
    ended: Sequence[bool]
    """Whether the policy ended it, and not the limit of tokens."""
    messages: Sequence[Messages | None]
    """The prompt as messages, where it came as such."""
    fields: Sequence[Mapping[str, Any]]
    """Other fields of the prompt's line."""

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, numbers: Sequence[int]) -> Completions:
        """Some of them."""
        columns = (self.prompts, self.texts, self.lengths, self.ended, self.messages, self.fields)
        return Completions(*([column[n] for n in numbers] for column in columns))  # type: ignore[arg-type]


class Scorer(Protocol):
    """One reward."""

    def score(self, batch: Completions, alive: Callable[[], None]) -> list[float]:
        """A finite number for each completion; calls `alive` while it waits. Raises RewardFailed."""

    def close(self) -> None:
        """Give up what it holds."""


@dataclass(frozen=True)
class Weighted:
    """One part of the sum."""

    name: str
    weight: float
    scorer: Scorer


@dataclass(frozen=True)
class Scores:
    """Of a batch."""

    total: list[float]
    """Weighted sums."""
    by_name: dict[str, list[float]] = field(default_factory=dict)
    """Unweighted."""


class RewardSum:
    """The weighted sum of rewards."""

    def __init__(self, parts: Sequence[Weighted]) -> None:
        self.parts = tuple(parts)

    def score(self, batch: Completions, alive: Callable[[], None] = lambda: None) -> Scores:
        """Score a batch. Raises RewardFailed."""
        by_name = {}
        for part in self.parts:
            by_name[part.name] = checked(part.name, part.scorer.score(batch, alive), batch)
            alive()
        rows = zip(*by_name.values(), strict=True) if len(batch) else ()
        weights = [part.weight for part in self.parts]
        return Scores([math.fsum(w * s for w, s in zip(weights, row, strict=True)) for row in rows], by_name)

    def close(self) -> None:
        """Give up processes and models."""
        for part in self.parts:
            part.scorer.close()


def checked(reward: str, scores: Any, batch: Completions) -> list[float]:
    """The scores as floats. Raises RewardMalformed, RewardNotFinite."""
    first = batch.prompts[0] if len(batch) else None
    if not isinstance(scores, list | tuple):
        raise RewardMalformed(reward, f"returned {type(scores).__name__} and no list", first)
    if len(scores) != len(batch):
        raise RewardMalformed(reward, f"returned {len(scores)} scores for {len(batch)} completions", first)
    for score, prompt in zip(scores, batch.prompts, strict=True):
        if isinstance(score, str) or not isinstance(score, int | float):
            raise RewardMalformed(reward, f"returned {score!r} as a score", prompt)
        if not math.isfinite(score):
            raise RewardNotFinite(reward, f"returned {float(score)}", prompt)
    return [float(score) for score in scores]
