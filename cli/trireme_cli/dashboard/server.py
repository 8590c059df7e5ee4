"""The web server of the page: on this computer alone, for reading alone."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from importlib.resources import files
from urllib.parse import urlsplit

from aiohttp import web

from trireme.loopback import is_loopback
from trireme_cli.dashboard.facts import Facts, Unknown

ADDRESS = "127.0.0.1"
PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/app.js": ("app.js", "text/javascript"),
    "/job.js": ("job.js", "text/javascript"),
    "/chart.js": ("chart.js", "text/javascript"),
    "/dom.js": ("dom.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    # Nothing from elsewhere, nothing inline, in nobody's frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what was not sent to this computer by its name: a foreign page whose name was bound to 127.0.0.1 anew.

    The port is not compared, so that the page can be forwarded (ssh -L). Other sites' own requests reach nothing that
    they can read, since no answer allows another origin.
    """
    if request.method not in ("GET", "HEAD"):
        raise web.HTTPMethodNotAllowed(request.method, ["GET", "HEAD"], headers=HEADERS)
    host = request.headers.get("Host", "")
    if not _is_own(host):
        raise web.HTTPMisdirectedRequest(text="this page is served to localhost and 127.0.0.1 only", headers=HEADERS)
    try:
        response = await handler(request)
    except web.HTTPException as error:
        error.headers.update(HEADERS)
        raise
    response.headers.update(HEADERS)
    return response


def _is_own(host: str) -> bool:
    try:
        return bool(host) and is_loopback(f"http://{host}") and urlsplit(f"http://{host}").netloc == host
    except ValueError:  # no host and port
        return False


def make_app(facts: Facts) -> web.Application:
    """The page and its JSON."""
    app = web.Application(middlewares=[guard])
    folder = files("trireme_cli.dashboard") / "page"
    for path, (name, kind) in PAGE_FILES.items():
        app.router.add_get(path, _file_handler((folder / name).read_bytes(), kind))

    async def overview(_: web.Request) -> web.Response:
        return _json(await asyncio.to_thread(facts.overview))

    async def detail(request: web.Request) -> web.Response:
        match = request.match_info
        try:
            return _json(await asyncio.to_thread(facts.detail, match["plural"], match["namespace"], match["name"]))
        except Unknown as error:
            return _json({"error": str(error)}, status=404)

    app.router.add_get("/api/overview", overview)
    app.router.add_get("/api/resources/{plural}/{namespace}/{name}", detail)
    return app


def _file_handler(body: bytes, kind: str) -> Handler:
    async def handle(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type=kind, charset="utf-8")

    return handle


def _json(body: dict[str, object], status: int = 200) -> web.Response:
    # Strict: NaN is no JSON, and a browser would refuse the whole answer.
    return web.json_response(text=json.dumps(body, allow_nan=False), status=status)


def listen(port: int) -> socket.socket:
    """A socket on this computer alone; port 0 takes a free one. Raises OSError."""
    return socket.create_server((ADDRESS, port))


async def serve(facts: Facts, listener: socket.socket, stopped: asyncio.Event) -> None:
    """Serve until stopped."""
    runner = web.AppRunner(make_app(facts), access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        await stopped.wait()
    finally:
        await runner.cleanup()
