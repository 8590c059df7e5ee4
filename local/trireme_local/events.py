"""Kubernetes Events: recorded once per cause, counted when they repeat."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

from trireme_local.kube import EVENTS, NETWORK_ERRORS, ApiException, JsonObject, KubeClient

log = logging.getLogger(__name__)

# Remembered causes; the oldest are forgotten first and then start a new Event object.
MEMORY_SIZE = 2000


def now_text() -> str:
    """The time as metav1.Time writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def now_micro_text() -> str:
    """The time as metav1.MicroTime writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class EventRecorder:
    """Writes Events in the background; an API server that is away never blocks the caller."""

    def __init__(self, client: KubeClient, component: str, host: str = "") -> None:
        self.client = client
        self.component = component
        self.host = host
        self._known: dict[tuple[str, ...], tuple[str, str, int]] = {}
        self._queue: asyncio.Queue[tuple[JsonObject, str, str, str]] = asyncio.Queue(maxsize=1000)

    def record(self, obj: JsonObject, kind: str, reason: str, message: str) -> None:
        """Queue an Event of `kind` Normal or Warning about `obj`. Dropped, and logged, when 1000 wait."""
        try:
            self._queue.put_nowait((obj, kind, reason, message))
        except asyncio.QueueFull:
            log.warning("event dropped, %d wait: %s %s", self._queue.qsize(), reason, message)

    async def run(self) -> None:
        """Write queued events until cancelled."""
        while True:
            obj, kind, reason, message = await self._queue.get()
            try:
                await self._write(obj, kind, reason, message)
            except (ApiException, *NETWORK_ERRORS) as error:
                log.info("event not written (%s %s): %r", reason, message, error)

    async def _write(self, obj: JsonObject, kind: str, reason: str, message: str) -> None:
        metadata = obj["metadata"]
        namespace = metadata.get("namespace") or "default"
        cause = (metadata.get("uid", ""), kind, reason, message)
        if known := self._known.get(cause):
            known_namespace, name, count = known
            body = {"count": count + 1, "lastTimestamp": now_text()}
            try:
                await self.client.patch(EVENTS, known_namespace, name, body)
            except ApiException as error:
                if error.status != 404:
                    raise
            else:
                self._known[cause] = (known_namespace, name, count + 1)
                return
        time = now_text()
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{metadata['name']}.", "namespace": namespace},
            "involvedObject": {
                "apiVersion": obj.get("apiVersion", "v1"),
                "kind": obj.get("kind", "Pod"),
                "name": metadata["name"],
                "uid": metadata.get("uid"),
                "resourceVersion": metadata.get("resourceVersion"),
                **({"namespace": metadata["namespace"]} if metadata.get("namespace") else {}),
            },
            "type": kind,
            "reason": reason,
            "message": message[:1024],
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
            "source": {"component": self.component, **({"host": self.host} if self.host else {})},
            "reportingComponent": self.component,
            "reportingInstance": self.host,
        }
        created = await self.client.create(EVENTS, namespace, event)
        if len(self._known) >= MEMORY_SIZE:
            del self._known[next(iter(self._known))]
        self._known[cause] = (namespace, created["metadata"]["name"], 1)
