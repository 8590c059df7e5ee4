"""The program's own HTTP interface: the report for the operator, the probes for the kubelet, metrics. Nothing is
written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol

from aiohttp import web

from trireme.metrics import CONTENT_TYPE, exposition
from trireme.protocol.serving import ReplicaReport, ServingConfig
from trireme_serving import metrics
from trireme_serving.errors import EngineRefused


class Watched(Protocol):
    """Who is asked."""

    def report(self) -> ReplicaReport: ...

    @property
    def started(self) -> bool: ...

    @property
    def ready(self) -> bool: ...

    @property
    def alive(self) -> bool: ...

    @property
    def stage_seconds(self) -> dict[str, float]: ...

    async def engine_metrics(self) -> str: ...


async def serve(replica: Watched, config: ServingConfig, host: str) -> list[web.AppRunner]:
    """Start answering; the metrics have a port of their own, so that who scrapes them need not reach the report."""
    return [
        await _start(_status(replica), host, config.status_port),
        await _start(_metrics(replica, config), host, config.metrics_port),
    ]


async def _start(app: web.Application, host: str, port: int) -> web.AppRunner:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner


def _metrics(replica: Watched, config: ServingConfig) -> web.Application:
    async def answer(_: web.Request) -> web.Response:
        engine: str | None = None
        with contextlib.suppress(EngineRefused):  # it says so itself, see ENGINE_SCRAPED
            engine = await replica.engine_metrics()
        found = metrics.collect(config.service, replica.report(), replica.ready, replica.stage_seconds, engine)
        return web.Response(body=exposition(found), headers={"Content-Type": CONTENT_TYPE})

    app = web.Application()
    app.router.add_get("/metrics", answer)
    return app


def _status(replica: Watched) -> web.Application:

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
    return app
