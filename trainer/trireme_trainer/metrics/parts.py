"""Where the time of a step goes on one rank, measured without making anything wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

DATA = "data"
GENERATION = "generation"
REWARD = "reward"
FORWARD_BACKWARD = "forwardBackward"
OPTIMIZER = "optimizer"
OTHER = "other"
VALIDATION = "validation"
CHECKPOINT = "checkpoint"


class Stamp(Protocol):
    """A moment of a device's own time."""

    @property
    def reached(self) -> bool:
        """Whether the device has come to it."""

    def seconds_since(self, earlier: Self) -> float:
        """Of two that are reached."""


class HostStamp:
    """Now, on processors."""

    reached = True

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def seconds_since(self, earlier: HostStamp) -> float:
        """From one to the other."""
        return self._at - earlier._at


class CudaStamp:
    """When the current stream is done with what it was given so far."""

    def __init__(self) -> None:
        import torch

        self._event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._event.record()

    @property
    def reached(self) -> bool:
        """Asked without waiting."""
        return bool(self._event.query())

    def seconds_since(self, earlier: CudaStamp) -> float:
        """From one to the other."""
        return float(earlier._event.elapsed_time(self._event)) / 1000.0


def stamps_of(device: Literal["cpu", "cuda"]) -> Callable[[], Stamp]:
    """What makes stamps of a device."""
    return CudaStamp if device == "cuda" else HostStamp


@dataclass(frozen=True)
class StepTiming:
    """One step of one rank, in seconds."""

    parts: dict[str, float]
    """Exclusive of one another; with `other` they are the whole step."""
    busy: float
    """Of that, what needed no other data-parallel rank."""


@dataclass
class _Step:
    began: Stamp
    intervals: list[tuple[str, bool, Stamp, Stamp]] = field(default_factory=list)
    ended: Stamp | None = None

    def timing(self) -> StepTiming:
        assert self.ended is not None
        parts: dict[str, float] = {}
        busy = 0.0
        for part, counts, begin, end in self.intervals:
            seconds = end.seconds_since(begin)
            parts[part] = parts.get(part, 0.0) + seconds
            busy += seconds if counts else 0.0
        rest = self.ended.seconds_since(self.began) - sum(parts.values())
        return StepTiming({**parts, OTHER: max(0.0, rest)}, busy)


class PartClock:
    """Times the parts of one step after another. On CUDA a step's times are known about a step later."""

    def __init__(self, device: Literal["cpu", "cuda"], stamp: Callable[[], Stamp] | None = None) -> None:
        self._stamp = stamp or stamps_of(device)
        self._step: _Step | None = None
        self._ended: _Step | None = None
        self._open: list[tuple[str, bool]] = []
        self._since: Stamp | None = None
        self._last: StepTiming | None = None

    def begin(self) -> None:
        """A step begins; nothing happens when it has begun already."""
        if self._step is None:
            self._step = _Step(self._stamp())

    @contextmanager
    def part(self, name: str, *, busy: bool = False) -> Iterator[None]:
        """What is done inside belongs to a part; what lies in a part within this one, to that alone.

        `busy`: it needs no other data-parallel rank. Outside a step nothing is timed.
        """
        self._enter((name, busy))
        try:
            yield
        finally:
            self._leave()

    def end(self) -> None:
        """The step is over."""
        if self._step is not None:
            self._step.ended = self._stamp()
            self._ended, self._step = self._step, None

    @property
    def last(self) -> StepTiming | None:
        """The newest step whose times are known."""
        if self._ended is not None and self._ended.ended is not None and self._ended.ended.reached:
            self._last, self._ended = self._ended.timing(), None
        return self._last

    def _enter(self, part: tuple[str, bool]) -> None:
        now = self._close()
        self._open.append(part)
        self._since = now

    def _leave(self) -> None:
        now = self._close()
        self._open.pop()
        self._since = now if self._open else None

    def _close(self) -> Stamp:
        now = self._stamp()
        if self._open and self._since is not None and self._step is not None:
            name, busy = self._open[-1]
            self._step.intervals.append((name, busy, self._since, now))
        return now
