"""Recording of a client's conversation with an API server, through a proxy that changes nothing."""

from __future__ import annotations

import base64
import json
import ssl
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

RECORDINGS = Path(__file__).parent / "recordings"
_HEADERS = ("Accept", "Content-Type", "User-Agent", "Impersonate-User")
_HOP_HEADERS = ("Transfer-Encoding", "Content-Length", "Connection", "Content-Encoding", "Date", "Server")


@dataclass
class Exchange:
    """One request and what was answered; a watch's answer is the list of its events."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any
    status: int = 0
    content_type: str = ""
    warnings: list[str] = field(default_factory=list)
    answer: Any = None

    @property
    def is_watch(self) -> bool:
        return self.query.get("watch", "") in ("true", "1", "True")


def _decoded(raw: bytes, content_type: str, watch: bool = False) -> Any:
    """JSON as such, a watch's lines as a list, everything else in base64 or as text."""
    if not raw:
        return None
    if watch and "json" in content_type:
        return [json.loads(line) for line in raw.splitlines() if line.strip()]
    try:
        return json.loads(raw)  # the Python client sends JSON without saying so
    except ValueError:
        pass
    try:
        return {"text": raw.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(raw).decode()}


def encoded(body: Any) -> bytes | None:
    """The bytes of a recorded body."""
    if body is None:
        return None
    if isinstance(body, dict) and set(body) == {"base64"}:
        return base64.b64decode(body["base64"])
    if isinstance(body, dict) and set(body) == {"text"}:
        return str(body["text"]).encode()
    return json.dumps(body).encode()


def _shortened(exchange: Exchange, raw: bytes) -> Any:
    """The big documents are recorded by their outline."""
    if exchange.path.startswith("/openapi/"):
        if "json" not in exchange.content_type:
            return {"bytes": True}
        document = json.loads(raw)
        return {key: document[key] for key in ("openapi", "swagger") if key in document}
    return _decoded(raw, exchange.content_type, exchange.is_watch)


class RecordingProxy:
    """A plain HTTP server on 127.0.0.1 that passes requests on to an API server and keeps the exchanges."""

    def __init__(self, url: str, ca_path: Path, token: str) -> None:
        self._url, self._token = url, token
        self._context = ssl.create_default_context(cafile=str(ca_path))
        self.exchanges: list[Exchange] = []
        self._runner: web.AppRunner | None = None
        self._client: aiohttp.ClientSession | None = None

    async def start(self) -> str:
        """Begin to listen; returns the proxy's URL."""
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._client = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self._context), auto_decompress=True)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Stop listening."""
        assert self._runner is not None
        assert self._client is not None
        await self._runner.cleanup()
        await self._client.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        headers = {name: request.headers[name] for name in _HEADERS if name in request.headers}
        exchange = Exchange(
            request.method, request.path, dict(request.query), headers, _decoded(raw, request.content_type)
        )
        assert self._client is not None
        sent = {**headers, "Authorization": f"Bearer {self._token}", "Accept-Encoding": "identity"}
        timeout = aiohttp.ClientTimeout(total=None)
        collected = b""
        try:
            async with self._client.request(
                request.method,
                self._url + request.path_qs,
                data=raw or None,
                headers=sent,
                timeout=timeout,
                skip_auto_headers=["Content-Type", "User-Agent", "Accept"],
            ) as answer:
                exchange.status = answer.status
                exchange.content_type = answer.headers.get("Content-Type", "")
                exchange.warnings = answer.headers.getall("Warning", [])
                response = web.StreamResponse(status=answer.status)
                for name, value in answer.headers.items():
                    if name not in _HOP_HEADERS:
                        response.headers.add(name, value)
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    collected += chunk
                    await response.write(chunk)
                await response.write_eof()
                return response
        finally:
            # Kept in the order of their ends, so that a watch comes after what it saw.
            if exchange.status:
                exchange.answer = _shortened(exchange, collected)
                self.exchanges.append(exchange)


def save(name: str, exchanges: list[Exchange]) -> Path:
    """Write a recording; requests for the same documents of discovery are kept once."""
    seen: set[str] = set()
    kept = []
    for exchange in exchanges:
        fixed = exchange.method == "GET" and exchange.path.startswith(("/openapi", "/version"))
        discovery = exchange.method == "GET" and exchange.path.count("/") <= 3 and exchange.path.startswith("/api")
        mark = json.dumps([exchange.path, exchange.headers.get("Accept", "")])
        if (fixed or discovery) and mark in seen:
            continue
        seen.add(mark)
        kept.append(asdict(exchange))
    path = RECORDINGS / f"{name}.json"
    RECORDINGS.mkdir(exist_ok=True)
    path.write_text(json.dumps(kept, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return path


def load(name: str) -> list[Exchange]:
    """Read a recording."""
    return [Exchange(**item) for item in json.loads((RECORDINGS / f"{name}.json").read_text())]
