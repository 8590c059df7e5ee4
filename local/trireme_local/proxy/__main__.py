"""`python -m trireme_local.proxy`: forward connections to Services, a process of its own beside the controllers.

What kube-proxy does with packet filters this does with sockets: cluster IPs are loopback addresses, and a pod's address
is one too. It watches Services and pods itself; while the API server is away it goes on with what it knows.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import resource
from pathlib import Path

from trireme_local.events import EventRecorder
from trireme_local.informer import Informer
from trireme_local.kube import PODS, SERVICES, KubeClient, wait_for_kubeconfig
from trireme_local.mainloop import run_until_signalled
from trireme_local.proxy.listeners import RETRY_SECONDS, Listeners
from trireme_local.proxy.routing import Route, routes, unreachable

log = logging.getLogger("trireme_local.proxy")


class ServiceProxy:
    """Keeps the listening sockets of all Services."""

    def __init__(self, client: KubeClient) -> None:
        self._services, self._pods = Informer(client, SERVICES), Informer(client, PODS)
        self._recorder = EventRecorder(client, "service-proxy")
        self._listeners = Listeners(self._complain)
        self._said: set[tuple[str, str]] = set()
        self._wake = asyncio.Event()
        for informer in (self._services, self._pods):
            informer.handlers.append(lambda old, new: self._wake.set())

    async def run(self) -> None:
        """Forward until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for job in (self._services.run, self._pods.run, self._recorder.run, self._follow):
                    group.create_task(job())
        finally:
            await self._listeners.close()

    async def _follow(self) -> None:
        await self._services.synced.wait()
        await self._pods.synced.wait()
        while True:
            self._wake.clear()
            self._explain()
            complete = await self._listeners.apply(routes(self._services.store.values(), self._pods.store.values()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if complete else RETRY_SECONDS):
                    await self._wake.wait()

    def _explain(self) -> None:
        """Say of each Service that is not reachable why, once."""
        for service in self._services.store.values():
            if why := unreachable(service):
                self._say(service["metadata"]["namespace"], service["metadata"]["name"], why)

    def _complain(self, route: Route, why: str) -> None:
        self._say(*route.service, why)

    def _say(self, namespace: str, name: str, why: str) -> None:
        service = self._services.store.get((namespace, name))
        if service is None or (service["metadata"]["uid"], why) in self._said:
            return
        self._said.add((service["metadata"]["uid"], why))
        log.warning("service %s/%s: %s", namespace, name, why)
        self._recorder.record(service, "Warning", "ServiceNotReachable", why)


def raise_file_limit() -> None:
    """Two descriptors per connection: take all that this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def serve(kubeconfig: Path) -> None:
    """Run the proxy until SIGTERM or SIGINT."""
    client = await KubeClient.from_kubeconfig(kubeconfig, "trireme-local-proxy")
    await run_until_signalled(client, ServiceProxy(client).run())


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = argparse.ArgumentParser(prog="trireme-local-proxy", description=__doc__)
    options.add_argument("--kubeconfig", type=Path, required=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    parsed = options.parse_args(arguments)
    wait_for_kubeconfig(parsed.kubeconfig)
    raise_file_limit()
    asyncio.run(serve(parsed.kubeconfig))


if __name__ == "__main__":
    main()
