"""Listening sockets of Services: one per port that has an endpoint, none where a connection must be refused."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from trireme_local.proxy.balancer import Balancer
from trireme_local.proxy.forward import CHUNK_BYTES, forward
from trireme_local.proxy.routing import Address, Route

log = logging.getLogger(__name__)

BACKLOG = 512
# An address that cannot be listened on (a port in use, or one that only root may use) is tried again after this long.
RETRY_SECONDS = 2.0


class _Listener:
    def __init__(self, route: Route) -> None:
        self.balancer = Balancer(route)
        self.server: asyncio.Server | None = None


class Listeners:
    """Brings the listening sockets in line with the routes; open connections are never touched by that."""

    def __init__(self, complain: Callable[[Route, str], None]) -> None:
        self._complain = complain
        self._listeners: dict[Address, _Listener] = {}
        self._connections: set[asyncio.Task[None]] = set()

    async def apply(self, routes: dict[Address, Route]) -> bool:
        """Listen where a route has endpoints, and nowhere else; False when an address could not be had."""
        for address in [item for item in self._listeners if not routes.get(item) or not routes[item].endpoints]:
            if (server := self._listeners.pop(address).server) is not None:
                server.close()
        complete = True
        for address, route in routes.items():
            if not route.endpoints:
                continue
            listener = self._listeners.get(address)
            if listener is None:
                listener = self._listeners[address] = _Listener(route)
            self._follow(listener, route)
            if listener.server is None:
                complete &= await self._listen(address, listener)
        return complete

    @staticmethod
    def _follow(listener: _Listener, route: Route) -> None:
        if listener.balancer.route.service != route.service:
            # The address has passed on to another Service, and with it what is remembered of clients.
            listener.balancer.forget()
        listener.balancer.route = route

    async def _listen(self, address: Address, listener: _Listener) -> bool:
        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(forward(listener.balancer, (reader, writer)))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

        try:
            listener.server = await asyncio.start_server(
                accepted, *address, backlog=BACKLOG, limit=CHUNK_BYTES, reuse_address=True
            )
        except OSError as error:
            self._complain(listener.balancer.route, f"cannot listen on {address[0]}:{address[1]}: {error.strerror}")
            return False
        log.info("%s:%d is service %s/%s", *address, *listener.balancer.route.service)
        return True

    async def close(self) -> None:
        """Close every listening socket and every connection."""
        for listener in self._listeners.values():
            if listener.server is not None:
                listener.server.close()
        self._listeners.clear()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
