"""What the demo saw: samples of a job over time, and the figures derived from them."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sample:
    """The job at one moment."""

    seconds: float  # since the demo applied the manifest
    state: str
    attempt: int
    step: int  # completed steps, as the newest attempt knows
    loss: float | None
    report_attempt: int  # the attempt that the step and loss belong to


@dataclass
class Fault:
    """The node loss that the demo caused."""

    seconds: float
    node: str
    step: int
    attempt: int


@dataclass
class Timeline:
    """All samples of a run, with its fault."""

    samples: list[Sample] = field(default_factory=list)
    fault: Fault | None = None

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)

    def losses(self) -> list[tuple[int, float, int]]:
        """(step, loss, attempt), one per step and attempt, in the order they were seen."""
        seen: dict[tuple[int, int], float] = {}
        for sample in self.samples:
            if sample.loss is not None and sample.step > 0:
                seen.setdefault((sample.report_attempt, sample.step), sample.loss)
        return [(step, loss, attempt) for (attempt, step), loss in seen.items()]

    def detect_seconds(self) -> float | None:
        """Fault -> the operator has raised the attempt."""
        return self._after_fault(lambda s, f: s.attempt > f.attempt)

    def recover_seconds(self) -> float | None:
        """Fault -> the first step completed by the next attempt."""
        resumed = self._resumed or 0
        return self._after_fault(lambda s, f: s.report_attempt > f.attempt and s.step > resumed)

    def resume_step(self) -> int | None:
        """The step that the attempt after the fault resumed from, by the job's status; None where there was none."""
        return self._resumed

    _resumed: int | None = None

    def record_resume(self, step: int) -> None:
        self._resumed = step

    def lost_steps(self) -> int | None:
        """Steps completed before the fault that had to be computed again."""
        if self.fault is None:
            return None
        # Samples without a report belong to no attempt: the last ones show the finished run's step.
        killed_in = self.fault.attempt
        seen = (s.step for s in self.samples if 0 < s.report_attempt <= killed_in)
        highest = max(seen, default=self.fault.step)
        return highest - (self._resumed or 0)

    def _after_fault(self, happened: Any) -> float | None:
        if self.fault is None:
            return None
        for sample in self.samples:
            if sample.seconds >= self.fault.seconds and happened(sample, self.fault):
                return round(sample.seconds - self.fault.seconds, 2)
        return None
