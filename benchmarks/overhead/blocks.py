"""One block: a fresh run, its steady steps, and the table over all blocks."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.common.local import Bench, BenchmarkFailed, example_job, wait_for
from benchmarks.common.page import median_and_range

from trireme.protocol import JobConfig
from trireme.resources.status import JobState

BARE, JOB, JOB_SAVING = "bare loop", "job, checkpoints off", "job, checkpoints on"
RUN_TIMEOUT_SECONDS = 900.0


@dataclass(frozen=True)
class Block:
    """The steady steps of one run."""

    contender: str
    step_seconds: list[float]
    """From one completed step to the next on rank 0, whatever lies between: reports, saves, waiting."""
    tokens_per_step: int
    checkpoints: int = 0
    round: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Over the whole block, its slowest steps included."""
        return self.tokens_per_step * len(self.step_seconds) / sum(self.step_seconds)


def steady(completed_at: Sequence[float], warmup_steps: int) -> list[float]:
    """Seconds per step after the warm-up, from Unix times at which steps were complete."""
    return [
        later - earlier
        for earlier, later in zip(completed_at[warmup_steps - 1 :], completed_at[warmup_steps:], strict=False)
    ]


@dataclass
class BlockRunner:
    """Runs blocks of so many steps on one cluster."""

    bench: Bench
    warmup_steps: int
    steps: int
    config: JobConfig | None = None
    """What the pods of the last job were told."""

    def round(self, number: int, interval_seconds: int) -> Iterator[Block]:
        """A job, the bare loop and a job that saves; every other round the other way."""
        order = (JOB, BARE, JOB_SAVING) if number % 2 == 0 else (JOB_SAVING, BARE, JOB)
        for contender in order:
            if contender == BARE:
                block = self.bare()
            else:
                saving = contender == JOB_SAVING
                block = self.job(f"{'saving' if saving else 'plain'}-{number}", interval_seconds if saving else 0)
            yield replace(block, round=number)

    def job(self, name: str, interval_seconds: int) -> Block:
        """A job from apply to Succeeded."""
        total = self.warmup_steps + self.steps
        job = self.bench.start(example_job(name, steps=total, interval_seconds=interval_seconds))
        status = job.wait_state(JobState.SUCCEEDED, RUN_TIMEOUT_SECONDS)
        if status.restarts.total:
            raise BenchmarkFailed(f"{name}: {status.restarts.total} restarts: {status.failure}")
        # The last records reach the store a moment after the job's end.
        records = wait_for(f"{total} steps in the store", 60, lambda: h if len(h := job.history()) == total else None)
        self.config = job.config()
        job.delete()
        seconds = steady([r.completed_at.timestamp() for r in records], self.warmup_steps)
        tokens = records[0].tokens
        contender = JOB_SAVING if interval_seconds else JOB
        return Block(contender, seconds, tokens, status.checkpoint.committed_count)

    def bare(self) -> Block:
        """The bare loop over what the last job trained, with as many ranks."""
        config = self.config
        assert config is not None
        job_file, output = self.bench.directory / "job.json", self.bench.directory / "bare.json"
        job_file.write_text(config.to_json())
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "benchmarks.overhead.bare_loop", str(job_file)]
        command += [str(self.warmup_steps + self.steps), str(output)]
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(config.world_size)}
        ranks = [
            subprocess.Popen(command, env=os.environ | threads | place | {"RANK": str(rank)})
            for rank in range(config.world_size)
        ]
        try:
            codes = [rank.wait(RUN_TIMEOUT_SECONDS) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        if any(codes):
            raise BenchmarkFailed(f"the bare loop's ranks ended with {codes}")
        spec = config.spec
        tokens = spec["training"]["globalBatchSize"] * spec["data"]["sequenceLength"]
        return Block(BARE, steady(json.loads(output.read_text()), self.warmup_steps), tokens)


def ratios(blocks: Sequence[Block], contender: str) -> list[float]:
    """Tokens/s of a contender's blocks over the bare loop's of the same round."""
    bare = {b.round: b.tokens_per_second for b in blocks if b.contender == BARE}
    return [b.tokens_per_second / bare[b.round] for b in blocks if b.contender == contender]


def table(blocks: Sequence[Block]) -> str:
    """Markdown: a row per contender, then every block in the order in which it ran."""
    lines = [
        "| contender | blocks | tokens/s, median (range) | spread | step, median | of the bare loop |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for contender in (BARE, JOB, JOB_SAVING):
        mine = [b for b in blocks if b.contender == contender]
        if not mine:
            continue
        middle, low, high = median_and_range([b.tokens_per_second for b in mine])
        step = statistics.median(s for b in mine for s in b.step_seconds)
        share = median_and_range(ratios(blocks, contender))
        lines.append(
            f"| {contender} | {len(mine)} | {middle:,.0f} ({low:,.0f} to {high:,.0f}) | {(high - low) / middle:.1%} "
            f"| {step:.3f} s | {share[0]:.3f} ({share[1]:.3f} to {share[2]:.3f}) |"
        )
    lines += [
        "",
        "| block | contender | tokens/s | step, median | slowest step | checkpoints |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for number, b in enumerate(blocks, start=1):
        lines.append(
            f"| {number} | {b.contender} | {b.tokens_per_second:,.0f} | {statistics.median(b.step_seconds):.3f} s "
            f"| {max(b.step_seconds):.3f} s | {b.checkpoints} |"
        )
    return "\n".join(lines)
