"""python -m trireme_trainer.finetune: one rank of a fine-tuning job, started by its node's agent."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trireme.protocol import JobConfig

if TYPE_CHECKING:
    from trireme_trainer.agent.channel import RankChannel
    from trireme_trainer.rank.run import Outcome


def preload(job: JobConfig) -> None:
    """Import what a rank of this job needs, before it is forked."""
    from trireme_trainer.finetune.config import FineTuneConfig

    if FineTuneConfig.parse(job).device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported, which accelerate does where it is there
    import trireme_trainer.finetune.teach  # noqa: F401


def run(channel: RankChannel) -> Outcome:
    """Teach."""
    from trireme_trainer.finetune.config import FineTuneConfig
    from trireme_trainer.rank.entry import Assignment

    given = Assignment.from_environment()
    config = FineTuneConfig.parse(given.job)
    preload(given.job)
    from trireme_trainer.finetune.teach import Teaching
    from trireme_trainer.hf.ranks import GroupRanks, start_deepspeed
    from trireme_trainer.metrics.throughput import device_peak, measure_cpu_peak

    ranks = GroupRanks(given.ranks(config.device))
    if config.plan.zero_stage:
        start_deepspeed(config.device)
    channel.alive()
    precision = config.spec.training.precision
    peak = measure_cpu_peak(precision) if config.device == "cpu" else device_peak(config.plan.accelerator, precision)
    inputs = channel.wait_for_inputs()
    outcome = Teaching(config, ranks, channel, given.place, inputs, given.target.settings, peak).run()
    ranks.close()
    return outcome


def main() -> None:
    """Entry point."""
    from trireme_trainer.rank import entry

    entry.main(run)


if __name__ == "__main__":
    main()
