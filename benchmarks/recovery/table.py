"""One recovery, and the table over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.common.page import seconds_cell

RANK, POD, NODE = "rank", "pod", "node"
FAULTS = (RANK, POD, NODE)
TRIREME, TORCHRUN = "trireme", "torchrun"


@dataclass(frozen=True)
class Recovery:
    """One fault and the way back, as Unix times at which each stage was over."""

    contender: str
    fault: str
    killed_at: float
    detected_at: float
    """Trireme: the next attempt is raised; torchrun: no rank of the old gang is left."""
    formed_at: float
    """All ranks run and are connected, their part of the model is built."""
    restored_at: float
    """The checkpoint is loaded, the first step begins."""
    caught_up_at: float
    """A step is complete that was not complete before the fault."""
    fault_step: int
    resume_step: int
    restarts: int = 1

    @property
    def parts(self) -> tuple[float, float, float, float]:
        """Seconds to detect, form, restore and recompute; the last includes the next step itself."""
        ends = (self.killed_at, self.detected_at, self.formed_at, self.restored_at, self.caught_up_at)
        detect, form, restore, recompute = (b - a for a, b in pairwise(ends))
        return detect, form, restore, recompute

    @property
    def total(self) -> float:
        """Seconds from the kill to the next completed step."""
        return self.caught_up_at - self.killed_at

    @property
    def steps_again(self) -> int:
        """Steps computed a second time."""
        return self.fault_step - self.resume_step


def table(recoveries: Sequence[Recovery]) -> str:
    """Markdown: a row per fault and contender, then every single recovery."""
    lines = [
        "| SIGKILL of | contender | runs | total, s | detect, s | form, s | restore, s | recompute, s | steps again |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for fault in FAULTS:
        for contender in (TRIREME, TORCHRUN):
            mine = [r for r in recoveries if (r.fault, r.contender) == (fault, contender)]
            if not mine:
                continue
            name = contender + (" (by hand)" if (fault, contender) == (NODE, TORCHRUN) else "")
            columns = [[r.total for r in mine], *([r.parts[i] for r in mine] for i in range(4))]
            cells = " | ".join(map(seconds_cell, columns))
            steps = seconds_cell([float(r.steps_again) for r in mine])
            lines.append(f"| {fault} | {name} | {len(mine)} | {cells} | {steps} |")
    lines += ["", "Every run, in the order in which it was made:", ""]
    lines += [
        "| contender | SIGKILL of | total, s | detect | form | restore | recompute | steps again | restarts |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in recoveries:
        parts = " | ".join(f"{p:.2f}" for p in r.parts)
        lines.append(f"| {r.contender} | {r.fault} | {r.total:.2f} | {parts} | {r.steps_again} | {r.restarts} |")
    return "\n".join(lines)
