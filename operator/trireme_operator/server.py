"""/metrics, /healthz and /readyz."""

import asyncio
from collections.abc import Callable, Iterable

from aiohttp import web
from prometheus_client.metrics_core import Metric as Family

from trireme.metrics import CONTENT_TYPE, exposition

Probe = Callable[[], str]
"""What is wrong; "" when nothing is."""


async def serve(
    host: str, port: int, collect: Callable[[], Iterable[Family]], healthy: Probe, ready: Probe
) -> tuple[web.AppRunner, int]:
    """Start the server; returns its runner and the port it got."""

    def probe(problem: Probe) -> Callable[[web.Request], object]:
        async def answer(_: web.Request) -> web.Response:
            wrong = problem()
            return web.Response(text=f"not ok: {wrong}" if wrong else "ok", status=503 if wrong else 200)

        return answer

    async def metrics(_: web.Request) -> web.Response:
        # Read here, where nothing changes meanwhile; written as text in a thread, which takes longer.
        body = await asyncio.to_thread(exposition, list(collect()))
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", probe(healthy))  # type: ignore[arg-type]
    app.router.add_get("/readyz", probe(ready))  # type: ignore[arg-type]
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    addresses = runner.addresses
    return runner, int(addresses[0][1]) if addresses else port
