"""ASGI middleware that runs inside vLLM's server: who may change adapters, and what is still being answered.

vLLM lets anybody who reaches the API load adapters, scale the engine or end others' requests. Here only the program
that started it may, by a token that it made for this one process. The middleware also counts the requests in flight,
and has clients leave when the replica drains.
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

TOKEN_ENV = "TRIREME_GUARD_TOKEN"
TOKEN_HEADER = "x-trireme-token"
PROTECTED = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
OPEN = (
    *("/v1/", "/v2/", "/invocations", "/tokenize", "/detokenize", "/generative_scoring"),
    *("/pooling", "/classify", "/score", "/rerank", "/health", "/ping", "/load", "/metrics", "/version"),
    *("/openapi.json", "/docs", "/redoc"),
)
"""Beginnings of the paths that clients may ask: not those that scale, pause, or end other clients' requests."""
FORBIDDEN = "not for clients; adapters are changed by the InferenceService's spec"
IN_FLIGHT, DRAIN = "/trireme/in-flight", "/trireme/drain"
UNCOUNTED = ("/health", "/metrics", "/ping", "/v1/models")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """Stands in front of vLLM's routes."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._token = os.environ[TOKEN_ENV].encode()
        self._in_flight = 0
        self._draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path = str(scope["path"]).rstrip("/") or "/"
        trusted = self._trusted(scope)
        if path.startswith("/trireme/"):
            return await self._own(path, trusted, send)
        if not trusted and (path in PROTECTED or not path.startswith(OPEN)):
            return await _answer(
                send,
                403,
                {"error": {"message": "not for clients; adapters are changed by the InferenceService's spec"}},
            )
        if trusted or path in UNCOUNTED:
            return await self._app(scope, receive, send)
        self._in_flight += 1
        try:
            await self._app(scope, receive, self._parting(send))
        finally:
            self._in_flight -= 1

    def _trusted(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == TOKEN_HEADER.encode()), b"")
        return hmac.compare_digest(given, self._token)

    async def _own(self, path: str, trusted: bool, send: Send) -> None:
        if not trusted or path not in (IN_FLIGHT, DRAIN):
            return await _answer(send, 404, {"error": {"message": "not found"}})
        self._draining |= path == DRAIN
        await _answer(send, 200, {"inFlight": self._in_flight})

    def _parting(self, send: Send) -> Send:
        """Have the client open its next connection elsewhere once this replica drains."""

        async def parting(message: Message) -> None:
            if self._draining and message["type"] == "http.response.start":
                headers = [(n, v) for n, v in message.get("headers", []) if n.lower() != b"connection"]
                message = {**message, "headers": [*headers, (b"connection", b"close")]}
            await send(message)

        return parting


async def _answer(send: Send, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
