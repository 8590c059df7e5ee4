"""How a rank that trains a Hugging Face model begins, whatever its kind."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from trireme.protocol import JobConfig

if TYPE_CHECKING:
    from trireme_trainer.agent.channel import RankChannel
    from trireme_trainer.hf.config import HFConfig
    from trireme_trainer.hf.run import HFRun
    from trireme_trainer.rank.run import Outcome


def preload(device: str, module: str) -> None:
    """Import what a rank needs, before it is forked."""
    _prepare_imports(device)
    import_module(module)


def _prepare_imports(device: str) -> None:
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported, which accelerate does where it is there


def run_rank(
    channel: RankChannel,
    parse: Callable[[JobConfig], HFConfig[Any]],
    choose: Callable[[HFConfig[Any]], type[HFRun]],
) -> Outcome:
    """Train. `choose` imports the run of a parsed job, which was preloaded or is only now."""
    from trireme_trainer.rank.entry import Assignment

    given = Assignment.from_environment()
    config = parse(given.job)
    _prepare_imports(config.device)
    run_type = choose(config)
    from trireme_trainer.hf.ranks import GroupRanks, start_deepspeed
    from trireme_trainer.metrics.throughput import device_peak, measure_cpu_peak

    ranks = GroupRanks(given.ranks(config.device))
    if config.plan.zero_stage:
        start_deepspeed(config.device)
    channel.alive()
    precision = config.spec.training.precision
    peak = measure_cpu_peak(precision) if config.device == "cpu" else device_peak(config.plan.accelerator, precision)
    inputs = channel.wait_for_inputs()
    outcome = run_type(config, ranks, channel, given.place, inputs, given.target.settings, peak).run()
    ranks.close()
    return outcome
