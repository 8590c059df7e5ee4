"""The client's answers when the API server does not answer as it should."""

import asyncio
import json

import pytest
from kubernetes.aio.client import Configuration

from trireme_operator.apply.api import Api, ApiError
from trireme_operator.leader import Leader

FULL = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"


async def server_that_says(text: bytes) -> tuple[asyncio.Server, Api]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(text)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    return server, Api(Configuration(host=f"http://127.0.0.1:{port}"))


BROKEN = [b"", FULL + b'{"half":', b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<html", b"nonsense\r\n\r\n"]


@pytest.mark.parametrize("text", BROKEN, ids=["closes", "breaks off", "no JSON", "no HTTP"])
async def test_a_broken_answer_is_an_api_error_and_no_crash(text: bytes) -> None:
    server, api = await server_that_says(text)
    async with server:
        with pytest.raises(ApiError) as caught:
            await api.get("/api/v1/pods")
        assert caught.value.status == 0
        await api.close()


async def test_the_election_goes_on_after_a_broken_answer() -> None:
    server, api = await server_that_says(BROKEN[1])

    def nothing() -> None:
        pass

    leader = Leader(
        api,
        "ns",
        "lease",
        "me",
        lease_seconds=3,
        renew_deadline_seconds=2,
        retry_seconds=0.1,
        on_start=nothing,
        on_stop=nothing,
    )
    async with server:
        await leader._round()
        await leader._round()
        assert not leader.leading()
        await api.close()


async def test_an_error_keeps_the_servers_reason_and_message() -> None:
    body = json.dumps({"reason": "Forbidden", "message": "no"}).encode()
    head = f"HTTP/1.1 403 Forbidden\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    server, api = await server_that_says(head + body)
    async with server:
        with pytest.raises(ApiError) as caught:
            await api.get("/api/v1/pods")
        assert (caught.value.status, caught.value.reason, caught.value.message) == (403, "Forbidden", "no")
        await api.close()
