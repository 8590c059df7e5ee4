"""What a policy said while it learned, and what it got for it: a few completions of each step, to be read by people."""

from collections.abc import Iterable

from pydantic import Field

from trireme.protocol.base import WireModel


class Sample(WireModel):
    """A completion that a policy learned from."""

    step: int = Field(description="Completed steps once it was learned from.")
    prompt: str = Field(description="The end of it, where it is long.")
    completion: str = Field(description="The beginning of it, where it is long.")
    reward: float = Field(description="Weighted sum.")
    rewards: dict[str, float] = Field(default_factory=dict, description="Each reward by name, unweighted.")


class SampleRecord(Sample):
    """As it is stored. A step that was made again has records of each attempt."""

    attempt: int


def parse_samples(data: bytes) -> list[SampleRecord]:
    """The records of one stored object. Raises pydantic.ValidationError."""
    return [SampleRecord.model_validate_json(line) for line in data.splitlines() if line]


def newest_attempt_wins(records: Iterable[SampleRecord]) -> list[SampleRecord]:
    """Of each step the records of the newest attempt that made it, in the order of steps."""
    records = list(records)
    newest: dict[int, int] = {}
    for record in records:
        newest[record.step] = max(record.attempt, newest.get(record.step, 0))
    return sorted((r for r in records if r.attempt == newest[r.step]), key=lambda r: r.step)
