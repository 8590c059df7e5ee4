"""/metrics, /healthz and /readyz."""

import asyncio
from collections.abc import Callable, Iterable, Iterator

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric as Family

Probe = Callable[[], str]
"""What is wrong; "" when nothing is."""


class _Collected:
    """Families as a registry that was asked already."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Family]:
        return iter(self._families)


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
        collected = _Collected(list(collect()))
        body = await asyncio.to_thread(generate_latest, collected)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

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
