"""python -m trireme_trainer.agent: the container's command in every training pod."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from aiohttp import web

from trireme_trainer.agent.core import Agent
from trireme_trainer.agent.environment import AgentEnvironment
from trireme_trainer.agent.server import make_app
from trireme_trainer.metrics.pod import PodMetrics


async def serve(environment: AgentEnvironment) -> int:
    """Run one agent to its end; its exit code."""
    metrics = PodMetrics(environment.config.job, environment.slot)
    metrics.serve(environment.pod_ip, environment.metrics_port)
    agent = Agent(environment, metrics)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, agent.terminate)
    runner = web.AppRunner(make_app(agent, environment.token), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, environment.pod_ip, environment.port).start()
    logging.getLogger(__name__).info(
        "agent of slot %d serves on %s:%d", environment.slot, environment.pod_ip, environment.port
    )
    try:
        return await agent.drive()
    finally:
        await runner.cleanup()


def main() -> None:
    """Entry point."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname).1s %(name)s: %(message)s"
    )
    logging.getLogger("botocore").setLevel(logging.WARNING)
    sys.exit(asyncio.run(serve(AgentEnvironment.read())))


if __name__ == "__main__":
    main()
