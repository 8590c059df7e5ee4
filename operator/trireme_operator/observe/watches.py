"""Kopf's watches, and nothing else of Kopf: only on.event handlers, so no finalizer, annotation or peering."""

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kopf
from kubernetes.aio.config.config_exception import ConfigException

from trireme.resources import GROUP, VERSION
from trireme_operator.apply.api import pod_configuration
from trireme_operator.metrics import INSTRUMENTS
from trireme_operator.observe.cache import Cache, JsonObject

log = logging.getLogger(__name__)

EXIT_SECONDS = 5.0
RESTART_SECONDS = 5.0

OnEvent = Callable[[str | None, JsonObject], None]
Resource = tuple[str, str, str]
"""Group, version and plural."""


class Watching:
    """Keeps watches open. Kopf ends all of them when one is refused for long: the others are opened again without it.

    What may not be watched is still listed by every resync, where that is allowed.
    """

    def __init__(
        self,
        handlers: Callable[[], dict[Resource, OnEvent]],
        may_watch: Callable[[Resource], bool],
        namespaces: tuple[str, ...],
        kubeconfig: str | None,
        account: Path,
    ) -> None:
        """`handlers` and `may_watch` are asked whenever watches are opened."""
        self._handlers, self._may_watch = handlers, may_watch
        self._namespaces, self._kubeconfig, self._account = namespaces, kubeconfig, account
        self._changed = asyncio.Event()

    def permissions_changed(self) -> None:
        """Open all watches anew where that makes a difference."""
        self._changed.set()

    async def run(self) -> None:
        """Watch for ever."""
        tried = self._handlers()  # all, so that a refusal is seen and not assumed
        while True:
            self._changed.clear()
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._until_ended(tried))
                while not watching.done():
                    change = asyncio.create_task(self._changed.wait())
                    await asyncio.wait({watching, change}, return_when=asyncio.FIRST_COMPLETED)
                    change.cancel()
                    self._changed.clear()
                    if self._permitted().keys() - tried.keys():
                        watching.cancel()
                        break
            tried = self._permitted()

    def _permitted(self) -> dict[Resource, OnEvent]:
        return {resource: handler for resource, handler in self._handlers().items() if self._may_watch(resource)}

    async def _until_ended(self, handlers: dict[Resource, OnEvent]) -> None:
        try:
            await watch(handlers, self._namespaces, self._kubeconfig, self._account)
        except RuntimeError as error:
            log.warning("%s; they are opened again", error)
            await asyncio.sleep(RESTART_SECONDS)


def registry(handlers: dict[Resource, OnEvent], account: Path) -> kopf.OperatorRegistry:
    """A registry with one on.event handler for each (group, version, plural)."""
    found = kopf.OperatorRegistry()

    @kopf.on.login(registry=found)  # type: ignore[untyped-decorator]
    def login(**kwargs: Any) -> kopf.ConnectionInfo:
        return kopf.login_with_kubeconfig(**kwargs) or pod_login(account)

    for (group, version, plural), handler in handlers.items():
        _register(found, group, version, plural, handler)
    return found


def pod_login(account: Path) -> kopf.ConnectionInfo:
    """What Kopf needs to speak as the pod's account; it asks again when a token is refused. Raises kopf.LoginError.

    Kopf's own way takes the API server's name, which needs DNS, where every pod is told the address.
    """
    try:
        configuration = pod_configuration(account)
    except ConfigException as error:
        raise kopf.LoginError(f"no kubeconfig, and no account of a pod: {error}") from error
    scheme, _, token = configuration.api_key["BearerToken"].partition(" ")
    ca_path = configuration.ssl_ca_cert
    return kopf.ConnectionInfo(server=configuration.host, ca_path=ca_path, scheme=scheme, token=token.strip())


def _register(found: kopf.OperatorRegistry, group: str, version: str, plural: str, handler: OnEvent) -> None:
    @kopf.on.event(group, version, plural, registry=found, id=f"see-{plural}")  # type: ignore[untyped-decorator]
    async def see(event: kopf.RawEvent, **_: Any) -> None:
        handler(event["type"], dict(event["object"]))


def settings() -> kopf.OperatorSettings:
    """Kopf with everything off that writes to the cluster."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.scanning.disabled = True
    chosen.peering.standalone = True
    chosen.watching.server_timeout = 300  # the API takes whole seconds
    chosen.watching.connect_timeout = 5.0
    chosen.networking.request_timeout = 30.0
    chosen.networking.error_backoffs = [1, 1, 2, 3, 5, 8, 10, 10, 10]
    chosen.queueing.error_delays = [1, 1, 2, 3, 5, 8, 10]
    chosen.queueing.exit_timeout = 1.0
    return chosen


async def watch(
    handlers: dict[Resource, OnEvent], namespaces: tuple[str, ...], kubeconfig: str | None, account: Path
) -> None:
    """Feed the handlers, in the caller's loop, until cancelled. Raises RuntimeError when Kopf ends by itself.

    Kopf runs in a thread with a loop of its own: in the main thread it would take over the signal handlers, and at its
    end it cancels every task of its loop that it does not know.
    """
    loop, stop = asyncio.get_running_loop(), threading.Event()

    def forward(plural: str, handler: OnEvent) -> OnEvent:
        seen = INSTRUMENTS.last_watch_event.labels(plural)

        def call(event: str | None, raw: JsonObject) -> None:
            seen.set_to_current_time()
            loop.call_soon_threadsafe(handler, event, raw)

        return call

    threaded = {resource: forward(resource[2], handler) for resource, handler in handlers.items()}
    ended: asyncio.Future[None] = loop.create_future()

    def over() -> None:
        if not ended.done():
            ended.set_result(None)

    def run() -> None:
        try:
            asyncio.run(_operate(threaded, namespaces, kubeconfig, account, stop))
        except Exception:  # reported by the future's waiter
            log.exception("watches")
        with contextlib.suppress(RuntimeError):  # the loop may be closed already
            loop.call_soon_threadsafe(over)

    threading.Thread(target=run, name="kopf", daemon=True).start()
    try:
        await asyncio.shield(ended)
        raise RuntimeError("Kopf's watches ended")
    finally:
        stop.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXIT_SECONDS):
                await asyncio.shield(ended)


async def _operate(
    handlers: dict[Resource, OnEvent],
    namespaces: tuple[str, ...],
    kubeconfig: str | None,
    account: Path,
    stop: threading.Event,
) -> None:
    if kubeconfig is not None:
        os.environ["KUBECONFIG"] = kubeconfig  # the only way that Kopf's login takes a path
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)  # it says that it leaves signals alone
    for name in ("kopf", "kopf.objects", "kopf.activities", "kopf.reactor"):
        logging.getLogger(name).setLevel(logging.WARNING)
    await kopf.operator(
        registry=registry(handlers, account),
        settings=settings(),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=list(namespaces),
        stop_flag=stop,
    )


def job_resource(plural: str) -> Resource:
    """Group, version and plural of a kind of ours."""
    return GROUP, VERSION, plural


def feed(cache: Cache, then: Callable[[JsonObject], None]) -> OnEvent:
    """A handler that keeps a cache and then looks at what changed."""

    def handle(event: str | None, raw: JsonObject) -> None:
        cache.handle(event, raw)
        then(raw)

    return handle
