"""One connection: from a client to the first endpoint that takes it, both directions until both ends have closed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

from trireme_local.proxy.balancer import Balancer
from trireme_local.proxy.routing import Address

# An endpoint on this computer answers at once or not at all (its node is cut off or frozen).
CONNECT_SECONDS = 2.0
CHUNK_BYTES = 256 * 1024
# Connections whose other end is gone without a word are found out after some minutes.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def prepare(writer: asyncio.StreamWriter) -> None:
    """Keep-alive for an accepted or made connection; asyncio has set TCP_NODELAY."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close at once with a reset, so that the other end does not take what it got for the whole."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()


async def connect(balancer: Balancer, client: str) -> Stream | None:
    """A connection to the first endpoint that accepts one; None when none does."""
    tried: set[Address] = set()
    while True:
        # The route may have changed while an endpoint did not answer.
        endpoint = next((item for item in balancer.order(client) if item not in tried), None)
        if endpoint is None:
            return None
        tried.add(endpoint)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CONNECT_SECONDS):
                stream = await asyncio.open_connection(*endpoint, limit=CHUNK_BYTES)
            balancer.connected(client, endpoint)
            return stream


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the end of the stream, no faster than the other side takes it; the end is passed on."""
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def forward(balancer: Balancer, client: Stream) -> None:
    """Serve one accepted connection; it is reset when no endpoint takes it or when either side fails."""
    reader, writer = client
    peer = writer.get_extra_info("peername")
    upstream: Stream | None = None
    done = False
    try:
        if peer is None:  # gone already
            return
        prepare(writer)
        upstream = await connect(balancer, peer[0])
        if upstream is None:
            return
        prepare(upstream[1])
        async with asyncio.TaskGroup() as group:
            group.create_task(_pump(reader, upstream[1]))
            group.create_task(_pump(upstream[0], writer))
        done = True
    except* OSError:
        pass  # one side went away: the other is told by a reset
    finally:
        for end in (writer, *([upstream[1]] if upstream else [])):
            if done:
                end.close()
            else:
                reset(end)
