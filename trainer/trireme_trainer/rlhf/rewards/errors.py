"""How the scoring of completions fails."""

from __future__ import annotations

SHOWN = 200
"""Characters of a prompt that a message shows."""


class RewardFailed(RuntimeError):
    """A reward cannot be computed; the message has its name, what is wrong and the first prompt concerned."""

    def __init__(self, reward: str, what: str, prompt: str | None = None) -> None:
        concerned = "" if prompt is None else f"; first prompt concerned: {prompt[:SHOWN]!r}"
        super().__init__(f"reward {reward}: {what}{concerned}")
        self.reward = reward
        self.prompt = prompt


class RewardUnusable(RewardFailed):
    """Its source, pattern, schema or model does not load."""


class RewardRaised(RewardFailed):
    """It raised an exception."""


class RewardTimedOut(RewardFailed):
    """It took longer than it may."""


class RewardOutOfMemory(RewardFailed):
    """It needed more memory than it may have."""


class RewardCrashed(RewardFailed):
    """Its process ended."""


class RewardNotFinite(RewardFailed):
    """A score is NaN or infinite."""


class RewardMalformed(RewardFailed):
    """It returned something else than one number for each completion."""
