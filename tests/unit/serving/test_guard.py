"""Inside vLLM's server only its own program changes adapters, and requests in flight are counted."""

import asyncio
import json
from typing import Any

import pytest

from trireme_serving import guard

TOKEN = "t" * 64


async def app(scope: Any, receive: Any, send: Any) -> None:
    await scope["hold"].wait()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"keep-alive")]})
    await send({"type": "http.response.body", "body": b"{}"})


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> guard.Guard:
    monkeypatch.setenv(guard.TOKEN_ENV, TOKEN)
    return guard.Guard(app)


async def ask(guarded: guard.Guard, path: str, token: str = "", hold: asyncio.Event | None = None) -> list[Any]:
    sent: list[Any] = []
    if hold is None:
        hold = asyncio.Event()
        hold.set()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(guard.TOKEN_HEADER.encode(), token.encode())] if token else []
    await guarded({"type": "http", "path": path, "headers": headers, "hold": hold}, None, send)  # type: ignore[arg-type]
    return sent


async def in_flight(guarded: guard.Guard, path: str = guard.IN_FLIGHT) -> int:
    _, body = await ask(guarded, path, TOKEN)
    return int(json.loads(body["body"])["inFlight"])


@pytest.mark.parametrize(
    "path",
    [
        *guard.PROTECTED,
        "/v1/load_lora_adapter/",
        "/adapters",
        "/adapters/fr",
        "/scale_elastic_ep",
        "/inference/v1/abort_requests",
    ],
)
async def test_a_client_cannot_change_adapters_or_the_engine(guarded: guard.Guard, path: str) -> None:
    assert (await ask(guarded, path))[0]["status"] == 403
    assert (await ask(guarded, path, "x" * 64))[0]["status"] == 403
    assert (await ask(guarded, path, TOKEN))[0]["status"] == 200


async def test_its_own_paths_are_hidden_from_clients(guarded: guard.Guard) -> None:
    assert (await ask(guarded, guard.DRAIN))[0]["status"] == 404
    assert (await ask(guarded, "/trireme/other", TOKEN))[0]["status"] == 404


async def test_requests_are_counted_until_their_last_byte_and_clients_are_sent_away_when_it_drains(
    guarded: guard.Guard,
) -> None:
    hold = asyncio.Event()
    request = asyncio.create_task(ask(guarded, "/v1/completions", hold=hold))
    await asyncio.sleep(0)
    assert await in_flight(guarded) == 1
    assert await in_flight(guarded, guard.DRAIN) == 1
    hold.set()
    start, _ = await request
    assert start["headers"] == [(b"connection", b"close")]
    assert await in_flight(guarded) == 0
    await ask(guarded, "/health")
    assert await in_flight(guarded) == 0
