"""python -m trireme_trainer.pretrain: one rank of a pretraining job, started by its node's agent."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from trireme.protocol import JobConfig

if TYPE_CHECKING:
    from trireme_trainer.agent.channel import RankChannel
    from trireme_trainer.rank.run import Outcome

log = logging.getLogger(__name__)


def preload(job: JobConfig) -> None:
    """Import what a rank of this job needs, before it is forked."""
    from trireme_trainer.engines.interface import preload_engine
    from trireme_trainer.pretrain import loop
    from trireme_trainer.pretrain.config import PretrainConfig

    config = PretrainConfig.parse(job)
    log.debug("preloading for %s", loop.__name__)
    preload_engine(config.engine.name, config.device)


def run(channel: RankChannel) -> Outcome:
    """Train."""
    from trireme_trainer.engines.interface import create_engine
    from trireme_trainer.metrics.throughput import device_peak, measure_cpu_peak
    from trireme_trainer.pretrain.config import PretrainConfig
    from trireme_trainer.pretrain.loop import Pretraining
    from trireme_trainer.rank.entry import Assignment

    logging.getLogger("megatron").setLevel(logging.WARNING)
    given = Assignment.from_environment()
    config = PretrainConfig.parse(given.job)
    engine = create_engine(config.engine, given.ranks(config.device))
    engine.setup()
    channel.alive()
    precision = config.spec.training.precision
    peak = measure_cpu_peak(precision) if config.device == "cpu" else device_peak(config.plan.accelerator, precision)
    inputs = channel.wait_for_inputs()
    outcome = Pretraining(config, engine, channel, given.place, inputs, given.target.settings, peak).run()
    engine.close()
    return outcome


def main() -> None:
    """Entry point."""
    from trireme_trainer.rank import entry

    entry.main(run)


if __name__ == "__main__":
    main()
