"""From the rewards of a spec to what scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trireme.resources.base import parse_quantity_bytes
from trireme.resources.rewards import FunctionReward, LengthReward, Reward
from trireme_trainer.rlhf.rewards.batch import Completions, RewardSum, Scorer, Weighted
from trireme_trainer.rlhf.rewards.errors import RewardUnusable
from trireme_trainer.rlhf.rewards.rules import length_range, length_target
from trireme_trainer.rlhf.rewards.sandbox import Code, Sandbox

RULE_SECONDS, RULE_BYTES = 30.0, 1 << 30
"""Of a pattern, a schema or a compilation, for a whole batch: far more than sane ones need, so that insane ones end."""

ModelScorer = Callable[[str], Scorer]
"""Makes the scorer of the reward model of a reward with this name."""


class LengthScorer:
    """Scores the number of a completion's tokens; an empty one scores 0."""

    def __init__(self, reward: LengthReward) -> None:
        if reward.target is not None:
            self._rule = length_target(reward.target)
        else:
            self._rule = length_range(reward.min, reward.max)

    def score(self, batch: Completions, alive: Callable[[], None]) -> list[float]:
        """One score for each completion."""
        return [
            self._rule(tokens) if text.strip() else 0.0 for tokens, text in zip(batch.lengths, batch.texts, strict=True)
        ]

    def close(self) -> None:
        """It holds nothing."""


def build_rewards(rewards: Sequence[Reward], sources: Mapping[str, str], model_scorer: ModelScorer) -> RewardSum:
    """What scores completions; `sources`: Python source of each reward function, by the reward's name.

    Raises RewardUnusable.
    """
    return RewardSum([Weighted(r.name, r.weight, _scorer(r, sources, model_scorer)) for r in rewards])


def _scorer(reward: Reward, sources: Mapping[str, str], model_scorer: ModelScorer) -> Scorer:
    if reward.model is not None:
        return model_scorer(reward.name)
    if reward.length is not None:
        return LengthScorer(reward.length)
    if reward.function is not None:
        return _function(reward.name, reward.function, sources)
    if reward.regex is not None:
        code = Code("regex", RULE_BYTES, parameters=reward.regex.to_manifest())
    elif reward.json_schema is not None:
        code = Code("jsonSchema", RULE_BYTES, parameters=reward.json_schema.to_manifest())
    else:
        code = Code("pythonSyntax", RULE_BYTES)
    return Sandbox(reward.name, code, RULE_SECONDS)


def _function(name: str, function: FunctionReward, sources: Mapping[str, str]) -> Sandbox:
    if name not in sources:
        raise RewardUnusable(name, f"there is no source of {function.config_map.name}/{function.config_map.key}")
    code = Code("function", parse_quantity_bytes(function.memory), source=sources[name])
    return Sandbox(name, code, function.timeout_seconds)


def read_sources(directory: Path, rewards: Sequence[Reward]) -> dict[str, str]:
    """The sources of reward functions that lie in a folder as <name of the reward>.py. Raises RewardUnusable."""
    found = {}
    for reward in rewards:
        if reward.function is None:
            continue
        try:
            found[reward.name] = (directory / f"{reward.name}.py").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RewardUnusable(reward.name, f"its source cannot be read: {error}") from error
    return found


def try_rewards(rewards: RewardSum, alive: Callable[[], None] = lambda: None) -> None:
    """Start what runs in processes of its own, so that what does not load is found before training.

    Raises RewardUnusable.
    """
    for part in rewards.parts:
        if isinstance(part.scorer, Sandbox):
            part.scorer.start(alive)
