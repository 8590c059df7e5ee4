"""A few completions of each step, for people to read: `trireme samples JOB`."""

from __future__ import annotations

from typing import Protocol

from trireme.checkpoints.samples import Sample
from trireme.protocol.base import WireModel
from trireme_trainer.agent.messages import SamplesEvent
from trireme_trainer.rlhf.rewards.batch import Completions, Scores

PER_STEP = 4
MOST_CHARACTERS = 4000
"""Of a prompt, or of a completion."""


class Channel(Protocol):
    """The rank's channel to its agent."""

    def send(self, message: WireModel) -> None: ...


class Transcripts:
    """Hands samples to the agent, which stores them."""

    def __init__(self, channel: Channel, *, wanted: bool, per_step: int = PER_STEP) -> None:
        """`wanted`: whether this rank's samples are shown: one rank's are enough."""
        self._channel, self._wanted, self._per_step = channel, wanted, per_step

    def add(self, step: int, batch: Completions, scores: Scores) -> None:
        """Show the first few of what the policy learns from in the step that completes as number `step`."""
        shown = min(self._per_step, len(batch))
        if not self._wanted or not shown:
            return
        samples = [
            Sample(
                step=step,
                prompt=batch.prompts[number][-MOST_CHARACTERS:],
                completion=batch.texts[number][:MOST_CHARACTERS],
                reward=scores.total[number],
                rewards={name: values[number] for name, values in scores.by_name.items()},
            )
            for number in range(shown)
        ]
        self._channel.send(SamplesEvent(samples=samples))
