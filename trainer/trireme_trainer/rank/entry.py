"""How the process of a rank begins and ends, whatever program it runs; its node's agent starts it."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trireme.protocol import JobConfig, Section, Settings, Target
from trireme.protocol.messages import DRAINED_EXIT_CODE
from trireme_trainer.agent.channel import AGENT_PID_ENV, AgentGone, RankChannel, die_with_parent
from trireme_trainer.agent.messages import FailedEvent
from trireme_trainer.engines.interface import RankEnvironment
from trireme_trainer.rank.errors import classify_exception
from trireme_trainer.rank.run import Outcome, Place

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assignment:
    """What the agent gives a rank."""

    job: JobConfig
    target: Target
    place: Place

    @classmethod
    def from_environment(cls) -> Assignment:
        """As the agent set it."""
        env = os.environ
        target = Target.model_validate_json(Path(env["TRIREME_TARGET_FILE"]).read_bytes())
        return cls(
            job=JobConfig.model_validate_json(Path(env["TRIREME_JOB_FILE"]).read_bytes()),
            target=target,
            place=Place(
                rank=int(env["RANK"]),
                local_rank=int(env["LOCAL_RANK"]),
                local_world_size=int(env["LOCAL_WORLD_SIZE"]),
                world_size=int(env["WORLD_SIZE"]),
                save_directory=Path(env["TRIREME_SAVE_DIRECTORY"]),
                resume_from=target.resume_from,
            ),
        )

    def ranks(self, device: Literal["cpu", "cuda"]) -> RankEnvironment:
        """Where the other ranks are."""
        return RankEnvironment(
            rank=self.place.rank,
            world_size=self.place.world_size,
            local_rank=self.place.local_rank,
            master_address=os.environ["MASTER_ADDR"],
            master_port=int(os.environ["MASTER_PORT"]),
            device=device,
            collective_timeout_seconds=collective_timeout_seconds(self.target.settings),
        )


def collective_timeout_seconds(settings: Settings) -> float:
    """How long a rank waits for the others in a collective.

    Twice as long as the agent's watch lets any section last, a save in which ranks wait for the slowest disk included:
    the watch names the rank that hangs, a collective's time-out only those that waited.
    """
    return max(60.0, 2 * max(1.25 * settings.step_timeout_seconds, settings.start_timeout_seconds))


def record(channel: RankChannel, error: BaseException, step: int) -> int:
    """Tell the agent how this rank ends, over the channel and in a file; the exit code."""
    kind, code = classify_exception(error)
    text = "".join(traceback.format_exception(error))
    print(text, file=sys.stderr, flush=True)
    event = FailedEvent(
        kind=kind,
        step=step,
        exception=type(error).__name__,
        message=str(error)[:2048],
        traceback_tail=text[-4096:],
    )
    try:
        Path(os.environ["TRIREME_ERROR_FILE"]).write_text(event.to_json())
    except OSError as full:  # the channel needs no disk
        log.error("no error file: %s", full)
    try:
        channel.send(event)
    except AgentGone:
        log.error("the agent is gone")
    return code


def main(run: Callable[[RankChannel], Outcome]) -> None:
    """Run a program as a rank; ends the process."""
    die_with_parent(int(os.environ[AGENT_PID_ENV]))
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S"
    )
    channel = RankChannel.from_environment()
    channel.enter(Section.START, 0)
    try:
        code = DRAINED_EXIT_CODE if run(channel) is Outcome.DRAINED else 0
    except BaseException as error:  # whatever it is, the operator must learn of it
        code = record(channel, error, channel.step)
    sys.stdout.flush()
    sys.stderr.flush()
    # Destructors of a broken process group can block for minutes.
    os._exit(code)
