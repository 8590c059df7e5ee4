"""`python -m trireme_serving`: what an inference pod runs."""

import asyncio
import logging
import signal
import sys

from trireme_serving.replica import Replica
from trireme_serving.server import serve
from trireme_serving.settings import Settings


async def run(settings: Settings) -> int:
    """One replica until SIGTERM; the exit code."""
    replica = Replica(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, replica.stop)
    runners = await serve(replica, settings.config, settings.address)
    try:
        return await replica.run()
    finally:
        for runner in runners:
            await runner.cleanup()


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.exit(asyncio.run(run(Settings.read())))


if __name__ == "__main__":
    main()
