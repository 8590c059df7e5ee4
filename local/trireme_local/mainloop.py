"""How a daemon that is a client of the API server runs and ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any

from trireme_local.kube import KubeClient


async def run_until_signalled(client: KubeClient, work: Coroutine[Any, Any, None]) -> None:
    """Run the work until SIGTERM or SIGINT, then close the client. Raises what the work raises."""
    task = asyncio.create_task(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    finally:
        await client.close()
