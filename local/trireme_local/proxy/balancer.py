"""Which endpoint a new connection tries first, and which next."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from trireme_local.proxy.routing import Address, Route

# Clients that a Service remembers, at most; the one that has been away longest is forgotten first.
MEMORY_SIZE = 10_000


class Balancer:
    """Orders the endpoints of one route for each connection: by chance, or the client's own first."""

    def __init__(self, route: Route, clock: Callable[[], float] = time.monotonic) -> None:
        self.route = route
        self._clock = clock
        self._clients: dict[str, tuple[Address, float]] = {}

    def order(self, client: str) -> list[Address]:
        """All endpoints in the order in which the connection of a client (an IP address) tries them."""
        chosen = list(self.route.endpoints)
        random.shuffle(chosen)
        if self.route.affinity_seconds and (known := self._clients.get(client)) is not None:
            endpoint, last = known
            if endpoint in self.route.endpoints and self._clock() - last <= self.route.affinity_seconds:
                chosen.remove(endpoint)
                chosen.insert(0, endpoint)
        return chosen

    def connected(self, client: str, endpoint: Address) -> None:
        """Remember whom the client was led to."""
        if self.route.affinity_seconds:
            self._clients.pop(client, None)
            if len(self._clients) >= MEMORY_SIZE:
                del self._clients[next(iter(self._clients))]
            self._clients[client] = (endpoint, self._clock())

    def forget(self) -> None:
        """Forget all clients."""
        self._clients.clear()
