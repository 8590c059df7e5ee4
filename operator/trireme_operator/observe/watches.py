"""Kopf's watches, and nothing else of Kopf: only on.event handlers, so no finalizer, annotation or peering."""

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any

import kopf

from trireme.resources import GROUP, VERSION
from trireme_operator.observe.cache import Cache, JsonObject

log = logging.getLogger(__name__)

OnEvent = Callable[[str | None, JsonObject], None]


def registry(handlers: dict[tuple[str, str, str], OnEvent]) -> kopf.OperatorRegistry:
    """A registry with one on.event handler for each (group, version, plural)."""
    found = kopf.OperatorRegistry()

    @kopf.on.login(registry=found)  # type: ignore[untyped-decorator]
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        kubeconfig = kopf.login_with_kubeconfig(**kwargs)
        return kubeconfig or kopf.login_with_service_account(**kwargs)

    for (group, version, plural), handler in handlers.items():
        _register(found, group, version, plural, handler)
    return found


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
    handlers: dict[tuple[str, str, str], OnEvent],
    namespaces: tuple[str, ...],
    kubeconfig: str | None,
    stop: asyncio.Event,
) -> None:
    """Feed the handlers until `stop` is set."""
    if kubeconfig is not None:
        os.environ["KUBECONFIG"] = kubeconfig  # the only way that Kopf's login takes a path
    for name in ("kopf", "kopf.objects", "kopf.activities", "kopf.reactor"):
        logging.getLogger(name).setLevel(logging.WARNING)
    await kopf.operator(
        registry=registry(handlers),
        settings=settings(),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=list(namespaces),
        stop_flag=stop,
    )


def job_resource(plural: str) -> tuple[str, str, str]:
    """Group, version and plural of a kind of ours."""
    return GROUP, VERSION, plural


def feed(cache: Cache, then: Callable[[JsonObject], None]) -> OnEvent:
    """A handler that keeps a cache and then looks at what changed."""

    def handle(event: str | None, raw: JsonObject) -> None:
        cache.handle(event, raw)
        then(raw)

    return handle
