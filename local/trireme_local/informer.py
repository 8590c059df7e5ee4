"""A local copy of one resource's objects, kept current by list and watch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from trireme_local.kube import (
    NETWORK_ERRORS,
    ApiException,
    JsonObject,
    KubeClient,
    Resource,
    WatchExpired,
)

log = logging.getLogger(__name__)

Key = tuple[str, str]
# (old, new): old is None for an object that appeared, new is None for one that is gone.
Handler = Callable[[JsonObject | None, JsonObject | None], None]

JSON = "application/json"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"

RETRY_SECONDS = 0.5
RETRY_MAX_SECONDS = 5.0


def key_of(obj: JsonObject) -> Key:
    """(namespace, name); namespace is "" for cluster-scoped objects."""
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


class Informer:
    """Lists, then watches; `store` holds the newest known version of each object, `handlers` hear every change."""

    def __init__(
        self,
        client: KubeClient,
        resource: Resource,
        *,
        namespace: str | None = None,
        field_selector: str = "",
        metadata_only: bool = False,
    ) -> None:
        self.client = client
        self.resource = resource
        self.namespace = namespace
        self.store: dict[Key, JsonObject] = {}
        self.handlers: list[Handler] = []
        self.synced = asyncio.Event()
        # False while the API server does not answer: silence of others means nothing then.
        self.connected = False
        self._query = {"fieldSelector": field_selector} if field_selector else {}
        self._metadata_only = metadata_only

    async def run(self) -> None:
        """Keep the store current until cancelled; every error is retried with growing pauses."""
        pause_seconds = RETRY_SECONDS
        version = ""
        while True:
            try:
                if not version:
                    version = await self._list()
                    self.connected = True
                    self.synced.set()
                version = await self._watch(version)
                pause_seconds = RETRY_SECONDS
                continue
            except WatchExpired as error:
                log.info("%s: watch expired, listing again: %s", self.resource.plural, error)
            except (ApiException, ValueError, *NETWORK_ERRORS) as error:
                log.info("%s: list/watch failed, retrying: %r", self.resource.plural, error)
            version, self.connected = "", False
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, RETRY_MAX_SECONDS)

    async def _list(self) -> str:
        accept = METADATA_LIST if self._metadata_only else JSON
        answer = await self.client.list(self.resource, self.namespace, accept=accept, **self._query)
        fresh = {key_of(item): item for item in answer.get("items") or []}
        for item in fresh.values():
            # Items of a list carry no kind of their own.
            item.setdefault("kind", self.resource.kind)
            item.setdefault("apiVersion", self.resource.group_version)
        for key in [key for key in self.store if key not in fresh]:
            self._apply(key, None)
        for key, item in fresh.items():
            self._apply(key, item)
        return str(answer["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> str:
        accept = METADATA_ONLY if self._metadata_only else JSON
        events = self.client.watch(self.resource, self.namespace, version, accept=accept, **self._query)
        async for event in events:
            obj = event["object"]
            version = obj["metadata"]["resourceVersion"]
            if event["type"] == "BOOKMARK":
                continue
            self._apply(key_of(obj), None if event["type"] == "DELETED" else obj)
        return version

    def _apply(self, key: Key, new: JsonObject | None) -> None:
        old = self.store.get(key)
        if old and new and old["metadata"].get("uid") != new["metadata"].get("uid"):
            # Deleted and created again between two lists: two events, not one change.
            self._apply(key, None)
            old = None
        if new is None:
            self.store.pop(key, None)
        else:
            if old and old["metadata"].get("resourceVersion") == new["metadata"].get("resourceVersion"):
                return
            self.store[key] = new
        if old is None and new is None:
            return
        for handler in self.handlers:
            handler(old, new)
