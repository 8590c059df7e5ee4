"""python -m trireme_trainer.pretrain: one rank of a pretraining job, started by its node's agent."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Literal, cast

from trireme.protocol import JobConfig, Section, Settings, Target
from trireme.protocol.messages import DRAINED_EXIT_CODE
from trireme_trainer.agent.channel import AGENT_PID_ENV, AgentGone, RankChannel, die_with_parent
from trireme_trainer.agent.messages import FailedEvent

log = logging.getLogger(__name__)


def preload(job: JobConfig) -> None:
    """Import what a rank of this job needs, before it is forked."""
    from trireme_trainer.engines.interface import preload_engine
    from trireme_trainer.pretrain import loop
    from trireme_trainer.pretrain.config import PretrainConfig

    config = PretrainConfig.parse(job)
    log.debug("preloading for %s", loop.__name__)
    preload_engine(config.engine.name, cast(Literal["cpu", "cuda"], config.device))


def collective_timeout_seconds(settings: Settings) -> float:
    """How long a rank waits for the others in a collective.

    Twice as long as the agent's watch lets any section last, a save in which ranks wait for the slowest disk included:
    the watch names the rank that hangs, a collective's time-out only those that waited.
    """
    return max(60.0, 2 * max(1.25 * settings.step_timeout_seconds, settings.start_timeout_seconds))


def run(channel: RankChannel) -> int:
    """Train; the exit code."""
    from trireme_trainer.engines.interface import RankEnvironment, create_engine
    from trireme_trainer.metrics.throughput import device_peak, measure_cpu_peak
    from trireme_trainer.pretrain.config import PretrainConfig
    from trireme_trainer.pretrain.loop import Outcome, Place, Pretraining

    env = os.environ
    config = PretrainConfig.parse(JobConfig.model_validate_json(Path(env["TRIREME_JOB_FILE"]).read_bytes()))
    target = Target.model_validate_json(Path(env["TRIREME_TARGET_FILE"]).read_bytes())
    environment = RankEnvironment(
        rank=int(env["RANK"]),
        world_size=int(env["WORLD_SIZE"]),
        local_rank=int(env["LOCAL_RANK"]),
        master_address=env["MASTER_ADDR"],
        master_port=int(env["MASTER_PORT"]),
        device=cast(Literal["cpu", "cuda"], config.device),
        collective_timeout_seconds=collective_timeout_seconds(target.settings),
    )
    place = Place(
        rank=environment.rank,
        local_rank=environment.local_rank,
        local_world_size=int(env["LOCAL_WORLD_SIZE"]),
        world_size=environment.world_size,
        save_directory=Path(env["TRIREME_SAVE_DIRECTORY"]),
        resume_from=target.resume_from,
    )
    engine = create_engine(config.engine, environment)
    engine.setup()
    channel.alive()
    precision = config.spec.training.precision
    peak = measure_cpu_peak(precision) if config.device == "cpu" else device_peak(config.plan.accelerator, precision)
    inputs = channel.wait_for_inputs()
    outcome = Pretraining(config, engine, channel, place, inputs, target.settings, peak).run()
    engine.close()
    return DRAINED_EXIT_CODE if outcome is Outcome.DRAINED else 0


def record(channel: RankChannel, error: BaseException, step: int) -> int:
    """Tell the agent how this rank ends, over the channel and in a file; the exit code."""
    from trireme_trainer.pretrain.errors import classify_exception

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


def main() -> None:
    """Entry point."""
    die_with_parent(int(os.environ[AGENT_PID_ENV]))
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("megatron").setLevel(logging.WARNING)
    channel = RankChannel.from_environment()
    channel.enter(Section.START, 0)
    try:
        code = run(channel)
    except BaseException as error:  # whatever it is, the operator must learn of it
        code = record(channel, error, channel.step)
    sys.stdout.flush()
    sys.stderr.flush()
    # Destructors of a broken process group can block for minutes.
    os._exit(code)


if __name__ == "__main__":
    main()
