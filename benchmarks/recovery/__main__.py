"""python -m benchmarks.recovery [--runs 5] [--output benchmarks/recovery/results.md]"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.common.local import Bench, example_job, running_cluster, wait_for
from benchmarks.common.page import head
from benchmarks.recovery import torchrun_runs, trireme_runs
from benchmarks.recovery.table import FAULTS, TORCHRUN, TRIREME, Recovery, table

from trireme.protocol import JobConfig


def main() -> int:
    """Make the runs, contenders alternated, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of every fault and contender")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--contenders", nargs="+", choices=(TRIREME, TORCHRUN), default=[TRIREME, TORCHRUN])
    parser.add_argument("--interval-steps", type=int, default=20, help="between checkpoints")
    parser.add_argument("--steps-after", type=int, default=10, help="from a checkpoint to the fault")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.md"))
    arguments = parser.parse_args()
    if not 0 < arguments.steps_after < arguments.interval_steps or arguments.runs < 1:
        parser.error("--runs is at least 1, and 0 < --steps-after < --interval-steps")

    heading = head("benchmarks.recovery", os.getloadavg()[0])
    recoveries: list[Recovery] = []
    with (
        tempfile.TemporaryDirectory(prefix="trireme-recovery-") as directory,
        running_cluster(Path(directory), nodes=3) as bench,
    ):
        config = _job_config(bench) if TORCHRUN in arguments.contenders else None
        for number in range(arguments.runs):
            steps = (arguments.faults, arguments.interval_steps, arguments.steps_after)
            if TRIREME in arguments.contenders:
                recoveries += _show(trireme_runs.measure(bench, f"recovery-{number}", *steps))
            if config is not None:
                recoveries += _show(torchrun_runs.measure(bench, config, f"torchrun-{number}", *steps))
            # After each, because all of them take half an hour.
            page = _page(recoveries, heading, arguments)
            arguments.output.write_text(page)
    print(page)
    return 0


def _show(recoveries: list[Recovery]) -> list[Recovery]:
    for r in recoveries:
        print(f"{r.contender}, {r.fault}: {r.total:.1f} s", flush=True)
    return recoveries


def _job_config(bench: Bench) -> JobConfig:
    """What the operator tells the pods of such a job, so that the other side builds the same model."""
    job = bench.start(example_job("model", steps=trireme_runs.STEPS))
    wait_for("the job's plan", 30, lambda: job.status.resolved)
    config = wait_for("the job's pods", 30, lambda: job.config() if job.status.gang.attempt else None)
    job.delete()
    return config


def _page(recoveries: list[Recovery], heading: str, arguments: argparse.Namespace) -> str:
    return f"""# Recovery from a SIGKILL

{heading}

Seconds as median (smallest to largest), from the kill to the next step that was not complete before it.

{table(recoveries)}

The job is `examples/pretrain.yaml` (tensor 2 x pipeline 2, four CPU ranks in two pods) on a cluster of three nodes,
with a checkpoint to S3 every {arguments.interval_steps} steps; a fault comes {arguments.steps_after} steps after a
committed checkpoint or a little later, and hits the last rank, all processes of the second pod, or all processes of
the node below it. detect: until the next attempt is raised (Trireme), until no rank of the old gang is left (torchrun).
form: until all ranks run and are connected and hold their part of the model; Trireme fetches the checkpoint meanwhile.
restore: until the checkpoint is loaded. recompute: the steps since the checkpoint, and the next one.

"torchrun" is `torchrun --max-restarts` with two agents and `torchrun_baseline.py`: same model, layout, store and
interval, every rank saves its part to S3 by hand and training waits for it. It verifies nothing that it loads. After
the loss of a pod its agent is started again at once, as a kubelet would. **After the loss of a node torchrun does
nothing by itself:** there the benchmark plays a person who starts torchrun on the spare in the instant of the loss,
which no person does; a real wait comes on top. The victim never hosts torchrun's rendezvous. torchrun runs with
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1: as it is by default, restarted gloo ranks met the addresses of the round before
and did not connect within five minutes (pytorch/pytorch#135712 has the same).
"""


if __name__ == "__main__":
    sys.exit(main())
