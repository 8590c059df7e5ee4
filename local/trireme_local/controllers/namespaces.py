"""Namespaces: a default service account and the cluster's certificate in each, everything removed at the end."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from trireme_local.controllers.discovery import deletable_resources
from trireme_local.informer import Informer
from trireme_local.kube import (
    CONFIGMAPS,
    NAMESPACES,
    NETWORK_ERRORS,
    SERVICEACCOUNTS,
    ApiException,
    JsonObject,
    KubeClient,
    Resource,
    is_status,
)

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
ROOT_CA = "kube-root-ca.crt"


class Namespaces:
    """Fills new namespaces and empties terminating ones."""

    def __init__(self, client: KubeClient, namespaces: Informer) -> None:
        self._client = client
        self._namespaces = namespaces
        self._wake = asyncio.Event()
        self._filled: set[str] = set()
        self._ca = Path(client.ca_path).read_text() if client.ca_path else ""
        namespaces.handlers.append(lambda old, new: self._wake.set())

    async def run(self) -> None:
        """Work until cancelled."""
        await self._namespaces.synced.wait()
        while True:
            self._wake.clear()
            unfinished = False
            for namespace in list(self._namespaces.store.values()):
                try:
                    unfinished |= await self._visit(namespace)
                except (ApiException, *NETWORK_ERRORS) as error:
                    log.warning("namespace %s: %r", namespace["metadata"]["name"], error)
                    unfinished = True
            if unfinished:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                await self._wake.wait()

    async def _visit(self, namespace: JsonObject) -> bool:
        """True when the namespace needs another visit."""
        name, uid = namespace["metadata"]["name"], namespace["metadata"]["uid"]
        if namespace["metadata"].get("deletionTimestamp"):
            self._filled.discard(uid)
            return await self._empty(namespace)
        if uid not in self._filled:
            await self._ensure(SERVICEACCOUNTS, name, {"metadata": {"name": "default"}})
            if self._ca:
                body = {"metadata": {"name": ROOT_CA}, "data": {"ca.crt": self._ca}}
                await self._ensure(CONFIGMAPS, name, body)
            self._filled.add(uid)
        return False

    async def _ensure(self, resource: Resource, namespace: str, body: JsonObject) -> None:
        named = {"apiVersion": resource.group_version, "kind": resource.kind, **body}
        try:
            await self._client.create(resource, namespace, named)
        except ApiException as error:
            if not is_status(error, 409):
                raise

    async def _empty(self, namespace: JsonObject) -> bool:
        """Delete everything inside; once nothing is left, let the namespace go. True when something is left."""
        name = namespace["metadata"]["name"]
        left = 0
        for resource in await deletable_resources(self._client, namespaced=True):
            try:
                items = (await self._client.list(resource, name)).get("items") or []
                for item in items:
                    left += 1
                    if not item["metadata"].get("deletionTimestamp"):
                        await self._client.delete(resource, name, item["metadata"]["name"])
            except ApiException as error:
                if not is_status(error, 404, 405, 409):
                    raise
        if left:
            return True
        finalizers = [item for item in (namespace.get("spec") or {}).get("finalizers") or [] if item != "kubernetes"]
        body = {**namespace, "spec": {**(namespace.get("spec") or {}), "finalizers": finalizers}}
        try:
            await self._client.replace(NAMESPACES, None, name, body, "finalize")
        except ApiException as error:
            if is_status(error, 409):
                return True
            if not is_status(error, 404):
                raise
        return False
