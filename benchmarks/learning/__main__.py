"""python -m benchmarks.learning [--seeds 3] [--steps 40] [--output benchmarks/learning/results.md]"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.common.local import Bench, running_cluster
from benchmarks.common.page import head
from benchmarks.learning import jobs

from trireme.resources.status import JobState, JobStatus

AT_ONCE = 2
PATIENCE_SECONDS = 1800.0
Figures = Mapping[str, float]


def main() -> int:
    """Make the runs and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--steps", type=int, default=40, help="of GRPO and PPO")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.md"))
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds is at least 2: a standard error is shown")
    heading = head("benchmarks.learning", os.getloadavg()[0])
    seeds = range(arguments.seeds)
    with (
        tempfile.TemporaryDirectory(prefix="trireme-learning-") as directory,
        running_cluster(Path(directory), nodes=2) as bench,
    ):
        run(bench, [jobs.base()])
        found = run(bench, [job(seed) for job in (jobs.taught, jobs.control) for seed in seeds])
        found |= run(bench, [jobs.preferring(seed) for seed in seeds])
        found |= run(bench, [jobs.rewarded(name, seed, arguments.steps) for name in ("grpo", "ppo") for seed in seeds])
    page = _page(found, list(seeds), heading, arguments.steps)
    arguments.output.write_text(page)
    print(page)
    return 0


def run(bench: Bench, manifests: Iterable[jobs.Manifest]) -> dict[str, Figures]:
    """What the jobs measured, by name; a few at a time."""

    def one(manifest: jobs.Manifest) -> tuple[str, Figures]:
        job = bench.start(manifest)
        figures = _figures(job.wait_state(JobState.SUCCEEDED, PATIENCE_SECONDS))
        print(f"{job.name}: { ({name: round(value, 4) for name, value in figures.items()}) }", flush=True)
        return job.name, figures

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return dict(threads.map(one, manifests))


def _figures(status: JobStatus) -> Figures:
    progress = status.progress
    assert progress is not None, "a job that succeeded has made steps"
    loss = {} if progress.validation_loss is None else {"validation/loss": progress.validation_loss}
    return {**progress.metrics, **loss}


def _row(name: str, before: Sequence[float], after: Sequence[float]) -> str:
    """Means, and the mean change over its standard error."""
    changes = [b - a for a, b in zip(before, after, strict=True)]
    error = statistics.stdev(changes) / len(changes) ** 0.5
    mean, start, end = (statistics.mean(values) for values in (changes, before, after))
    times = "-" if error == 0 else f"{abs(mean) / error:.1f}"
    cells = (name, f"{start:.4f}", f"{end:.4f}", f"{mean:+.4f}", f"{error:.4f}", times)
    return f"| {' | '.join(cells)} |"


def _page(found: Mapping[str, Figures], seeds: Sequence[int], heading: str, steps: int) -> str:
    def of(kind: str, figure: str) -> list[float]:
        return [found[f"{kind}-{seed}"][figure] for seed in seeds]

    rows = [
        _row("LoRA, held-out loss: base, then taught", of("taught", "start/loss"), of("taught", "validation/loss")),
        _row("the same steps on plain source", of("control", "start/loss"), of("control", "validation/loss")),
        _row(
            "held-out loss: plain source, then taught",
            of("control", "validation/loss"),
            of("taught", "validation/loss"),
        ),
        _row(
            "DPO, own docstring raised above another's",
            of("preferring", "start/accuracy"),
            of("preferring", "validation/accuracy"),
        ),
        _row(
            "DPO, own docstring likelier than another's",
            of("preferring", "start/policyAccuracy"),
            of("preferring", "validation/policyAccuracy"),
        ),
        *(
            _row(f"{kind.upper()}, verifiable reward", of(kind, "start/reward"), of(kind, "validation/reward"))
            for kind in ("grpo", "ppo")
        ),
    ]
    table = "\n".join(rows)
    return f"""# What the line learns

{heading}

Means over {len(seeds)} seeds, each measured before the first step and after the last on held-out functions: those of
email, http, json, urllib and xml, which are in no stage's training data.

| | before | after | change | standard error | change / error |
|---|---|---|---|---|---|
{table}

The stages are those of `examples/line/`, on one rank each. DPO, GRPO and PPO start from the first seed's taught model.
DPO raises a docstring above another where it makes the first likelier by a larger factor than the second, after the
same signature; before the first step all factors are 1, which counts as one half.
The verifiable reward of a completion of 16 tokens is 1 where it begins with "Return", as a part of the library's
docstrings do, else 0; GRPO and PPO make {steps} steps of 16 prompts with 4 completions each. Completions of held-out
prompts are drawn with the same seeds before and after.
"""


if __name__ == "__main__":
    sys.exit(main())
