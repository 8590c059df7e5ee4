"""python -m benchmarks.finetune [--rounds 3] [--steps 60] [--output benchmarks/finetune/results.md]"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.common.local import running_cluster
from benchmarks.common.page import head
from benchmarks.finetune.blocks import BATCH, METHODS, MICRO, RANKS, SHAPE, Block, BlockRunner, ratios, table

TARGET = 0.97


def main() -> int:
    """Run the blocks one after the other and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetune", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="each: a job and the script of each method, or back")
    parser.add_argument("--steps", type=int, default=60, help="timed steps per block")
    parser.add_argument("--warmup-steps", type=int, default=10, help="steps left out at the start of every block")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.md"))
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.steps, arguments.warmup_steps) < 1:
        parser.error("--rounds, --steps and --warmup-steps are at least 1")

    load = os.getloadavg()[0]
    blocks: list[Block] = []
    with (
        tempfile.TemporaryDirectory(prefix="trireme-finetune-") as directory,
        running_cluster(Path(directory), nodes=1) as bench,
    ):
        runner = BlockRunner(bench, arguments.warmup_steps, arguments.steps)
        for number in range(arguments.rounds):
            for block in runner.round(number):
                print(f"{block.method}, {block.contender}: {block.tokens_per_second:,.0f} tokens/s", flush=True)
                blocks.append(block)
    page = _page(blocks, head("benchmarks.finetune", load), arguments)
    arguments.output.write_text(page)
    print(page)
    return 0


def _page(blocks: list[Block], heading: str, arguments: argparse.Namespace) -> str:
    seen = {method: statistics.median(ratios(blocks, method)) for method in METHODS}
    said = {True: "reached it", False: "missed it"}
    verdicts = "; ".join(f"{method} {said[ratio >= TARGET]} with {ratio:.3f}" for method, ratio in seen.items())
    return f"""# A fine-tuning job beside a plain script over trl and peft

{heading}

{table(blocks)}

Target: at least {TARGET:.2f} of the script's tokens/s; {verdicts}.

Every block is a fresh run of {arguments.warmup_steps} warm-up and {arguments.steps} timed steps in float32 on
{RANKS} CPU ranks: a Llama of {SHAPE["num_hidden_layers"]} layers of width {SHAPE["hidden_size"]}, batches of {BATCH}
examples in micro-batches of {MICRO}. The job runs on a local cluster with operator, API server and S3 store, all on
this machine, from `apply` to `Succeeded`; `benchmarks/finetune/plain.py` runs under torchrun beside the same cluster
while it is idle, over the same examples in the same order, with the same seed and settings. A step lasts from one
completed step to the next on rank 0. The sixth column is the median (and range) over the rounds of a job's tokens/s
over those of the script beside it, the last one the largest difference of a step's loss between both. The order of a
round's blocks is turned round each time, so that a machine that changes its pace favours nobody.
"""


if __name__ == "__main__":
    sys.exit(main())
