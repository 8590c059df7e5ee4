"""python -m benchmarks.overhead [--rounds 5] [--steps 60] [--output benchmarks/overhead/results.md]"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.common.local import running_cluster
from benchmarks.common.page import head
from benchmarks.overhead.blocks import JOB, Block, BlockRunner, ratios, table

TARGET = 0.97


def main() -> int:
    """Run the blocks one after the other and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="each: a job, a bare loop, a job that saves, or back")
    parser.add_argument("--steps", type=int, default=60, help="timed steps per block")
    parser.add_argument("--warmup-steps", type=int, default=10, help="steps left out at the start of every block")
    parser.add_argument("--interval-seconds", type=int, default=15, help="between checkpoints, where they are on")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.md"))
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.steps, arguments.warmup_steps) < 1:
        parser.error("--rounds, --steps and --warmup-steps are at least 1")

    load = os.getloadavg()[0]
    blocks: list[Block] = []
    with (
        tempfile.TemporaryDirectory(prefix="trireme-overhead-") as directory,
        running_cluster(Path(directory), nodes=3) as bench,
    ):
        runner = BlockRunner(bench, arguments.warmup_steps, arguments.steps)
        for number in range(arguments.rounds):
            for block in runner.round(number, arguments.interval_seconds):
                print(f"{block.contender}: {block.tokens_per_second:,.0f} tokens/s", flush=True)
                blocks.append(block)
    page = _page(blocks, head("benchmarks.overhead", load), arguments)
    arguments.output.write_text(page)
    print(page)
    return 0


def _page(blocks: list[Block], heading: str, arguments: argparse.Namespace) -> str:
    seen = statistics.median(ratios(blocks, JOB))
    verdict = "reached" if seen >= TARGET else "missed"
    return f"""# Overhead of a job over a bare loop

{heading}

{table(blocks)}

Target with checkpoints off: at least {TARGET:.2f} of the bare loop's tokens/s; {verdict} with {seen:.3f}.

Every block is a fresh run of {arguments.warmup_steps} warm-up and {arguments.steps} timed steps of
`examples/pretrain.yaml` (tensor 2 x pipeline 2, four CPU ranks) on a cluster of three nodes with operator, API server
and S3 store, all on this machine; the bare loop runs on the same cluster while it is idle. A step lasts from one
completed step to the next on rank 0, so reports, agreement between ranks and saves count. Checkpoints every
{arguments.interval_seconds} s where they are on. Spread is the range of the blocks over their median. The last column
is the median (and range) over the rounds of a block's tokens/s over those of the bare loop beside it. The order of a
round's blocks is turned round each time, so that a machine that changes its pace favours nobody.
"""


if __name__ == "__main__":
    sys.exit(main())
