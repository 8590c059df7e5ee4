"""The program's own HTTP interface: the report for the operator, and the probes for the kubelet. Nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from aiohttp import web

from trireme.protocol.serving import ReplicaReport


class Watched(Protocol):
    """Who is asked."""

    def report(self) -> ReplicaReport: ...

    @property
    def started(self) -> bool: ...

    @property
    def ready(self) -> bool: ...

    @property
    def alive(self) -> bool: ...


async def serve(replica: Watched, host: str, port: int) -> web.AppRunner:
    """Start answering."""

    async def report(_: web.Request) -> web.Response:
        return web.Response(text=replica.report().to_json(), content_type="application/json")

    def probe(check: Callable[[], bool]) -> Callable[[web.Request], object]:
        async def answer(_: web.Request) -> web.Response:
            good = check()
            return web.Response(text="ok\n" if good else "not ok\n", status=200 if good else 503)

        return answer

    app = web.Application()
    app.router.add_get("/v1/report", report)
    app.router.add_get("/started", probe(lambda: replica.started))  # type: ignore[arg-type]
    app.router.add_get("/ready", probe(lambda: replica.ready))  # type: ignore[arg-type]
    app.router.add_get("/alive", probe(lambda: replica.alive))  # type: ignore[arg-type]
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
