"""python -m trireme_trainer.rlhf: one rank of an RLHF job, started by its node's agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trireme.protocol import JobConfig

if TYPE_CHECKING:
    from trireme_trainer.agent.channel import RankChannel
    from trireme_trainer.hf.run import HFRun
    from trireme_trainer.rank.run import Outcome

MODULES = {
    "reward": "trireme_trainer.rlhf.reward_model",
    "dpo": "trireme_trainer.rlhf.dpo",
    "grpo": "trireme_trainer.rlhf.grpo",
    "ppo": "trireme_trainer.rlhf.ppo.run",
}
"""Each has a class AlgorithmRun."""


def preload(job: JobConfig) -> None:
    """Import what a rank of this job needs, before it is forked."""
    from trireme_trainer.hf import entry
    from trireme_trainer.rlhf.config import RLHFConfig

    config = RLHFConfig.parse(job)
    entry.preload(config.device, MODULES[config.spec.algorithm])


def _choose(config: Any) -> type[HFRun]:
    from importlib import import_module

    chosen: type[HFRun] = import_module(MODULES[config.spec.algorithm]).AlgorithmRun
    return chosen


def run(channel: RankChannel) -> Outcome:
    """Align."""
    from trireme_trainer.hf.entry import run_rank
    from trireme_trainer.rlhf.config import RLHFConfig

    return run_rank(channel, RLHFConfig.parse, _choose)


def main() -> None:
    """Entry point."""
    from trireme_trainer.rank import entry

    entry.main(run)


if __name__ == "__main__":
    main()
