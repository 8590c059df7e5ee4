"""Sends a pod's status to the API server whenever it has changed, and again when somebody else changed it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from trireme_local.kube import (
    NETWORK_ERRORS,
    PODS,
    STRATEGIC_PATCH,
    ApiException,
    JsonObject,
    KubeClient,
    is_status,
)

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


class StatusWriter:
    """Writes the status of one pod; `gone` is set once its API object no longer exists."""

    def __init__(self, client: KubeClient, pod: JsonObject, source: Callable[[], JsonObject]) -> None:
        metadata = pod["metadata"]
        self.gone = False
        self._client = client
        self._namespace, self._name, self._uid = metadata["namespace"], metadata["name"], metadata["uid"]
        self._source = source
        self._dirty = asyncio.Event()
        self._written: JsonObject = {}

    def changed(self) -> None:
        """Have the status written soon."""
        self._dirty.set()

    def compare(self, pod: JsonObject) -> None:
        """Write again when a condition that was written here shows differently.

        The node lifecycle controller marks pods of a silent node not ready; only the node can take that back.
        """
        shown = {item["type"]: item["status"] for item in (pod.get("status") or {}).get("conditions") or []}
        written = self._written.get("conditions") or []
        if any(shown.get(item["type"]) != item["status"] for item in written):
            self._written = {}
            self.changed()

    async def run(self) -> None:
        """Write whenever the status has changed, until cancelled."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if not await self.write():
                self._dirty.set()
                await asyncio.sleep(RETRY_SECONDS)

    async def write(self) -> bool:
        """Send the status when it has changed; False when it could not be written."""
        if self.gone:
            return True
        status = self._source()
        if status == self._written:
            return True
        body = {"metadata": {"uid": self._uid}, "status": status}
        if "podIPs" in status:
            # Addresses merge by themselves: the one of a pod that ran before its node restarted would stay.
            body["status"] = {**status, "podIPs": [*status["podIPs"], {"$patch": "replace"}]}
        try:
            await self._client.patch(
                PODS, self._namespace, self._name, body, sub="status", content_type=STRATEGIC_PATCH
            )
        except (ApiException, *NETWORK_ERRORS) as error:
            if is_status(error, 404, 409):
                # Gone, or replaced by a pod of the same name (the patch's uid is a precondition).
                log.info("pod %s/%s: status not written: %s", self._namespace, self._name, error)
                return True
            log.warning("pod %s/%s: status not written, trying again: %r", self._namespace, self._name, error)
            return False
        self._written = status
        return True

    async def delete_object(self) -> bool:
        """Remove the API object now that nothing of the pod runs; False when that must be tried again."""
        try:
            await self._client.delete(PODS, self._namespace, self._name, uid=self._uid, grace_period_seconds=0)
        except (ApiException, *NETWORK_ERRORS) as error:
            if is_status(error, 404, 409):
                return True
            log.warning("pod %s/%s: not deleted, trying again: %r", self._namespace, self._name, error)
            return False
        return True
