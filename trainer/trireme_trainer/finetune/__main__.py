"""python -m trireme_trainer.finetune: one rank of a fine-tuning job, started by its node's agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trireme.protocol import JobConfig

if TYPE_CHECKING:
    from trireme_trainer.agent.channel import RankChannel
    from trireme_trainer.hf.run import HFRun
    from trireme_trainer.rank.run import Outcome

MODULE = "trireme_trainer.finetune.teach"


def preload(job: JobConfig) -> None:
    """Import what a rank of this job needs, before it is forked."""
    from trireme_trainer.finetune.config import FineTuneConfig
    from trireme_trainer.hf import entry

    entry.preload(FineTuneConfig.parse(job).device, MODULE)


def _choose(_: Any) -> type[HFRun]:
    from trireme_trainer.finetune.teach import Teaching

    return Teaching


def run(channel: RankChannel) -> Outcome:
    """Teach."""
    from trireme_trainer.finetune.config import FineTuneConfig
    from trireme_trainer.hf.entry import run_rank

    return run_rank(channel, FineTuneConfig.parse, _choose)


def main() -> None:
    """Entry point."""
    from trireme_trainer.rank import entry

    entry.main(run)


if __name__ == "__main__":
    main()
