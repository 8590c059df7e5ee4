"""The garbage collector: dependents follow their owners, in the background, the foreground, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict

from trireme_local.controllers.discovery import api_resources, deletable_resources
from trireme_local.controllers.ownership import FOREGROUND, ORPHAN, ObjectNode, OwnershipGraph, OwnerState, decide
from trireme_local.informer import Handler, Informer
from trireme_local.kube import NETWORK_ERRORS, ApiException, JsonObject, KubeClient, Resource, is_status

log = logging.getLogger(__name__)

DISCOVERY_SECONDS = 5.0
RETRY_SECONDS = 1.0
UNKNOWN_KIND_SECONDS = 30.0
ABSENT_SIZE = 2000
# Short-lived and never owners of anything; watching them would cost more than it gives.
IGNORED = {("v1", "events"), ("events.k8s.io/v1", "events")}


class UnknownOwnerKind(LookupError):
    """The API server does not serve the owner's kind (now): nothing is deleted for that."""


class GarbageCollector:
    """Watches the metadata of every resource and acts on owner references."""

    def __init__(self, client: KubeClient, crds: Informer) -> None:
        self._client = client
        self._crds = crds
        self.graph = OwnershipGraph()
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        self._informers: dict[Resource, asyncio.Task[None]] = {}
        self._sources: dict[Resource, Informer] = {}
        self._kinds: dict[tuple[str, str], Resource] = {}
        # Resources that a CustomResourceDefinition serves; only these can vanish.
        self._custom: set[Resource] = set()
        # Uids that were seen to go. An owner that is neither known nor here is asked for, never assumed absent.
        self._absent: OrderedDict[str, None] = OrderedDict()
        self._rediscover = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        crds.handlers.append(lambda old, new: self._rediscover.set())

    async def run(self) -> None:
        """Collect until cancelled."""
        discovering = asyncio.create_task(self._discover_always())
        try:
            while True:
                uid = await self._queue.get()
                self._queued.discard(uid)
                try:
                    await self._process(uid)
                except UnknownOwnerKind as error:
                    log.info("garbage collection of %s: %s", uid, error)
                    self._later(uid, UNKNOWN_KIND_SECONDS)
                except (ApiException, *NETWORK_ERRORS) as error:
                    if not is_status(error, 404):
                        log.info("garbage collection of %s: %r, trying again", uid, error)
                    self._later(uid)
        finally:
            for task in [discovering, *self._informers.values(), *self._tasks]:
                task.cancel()

    def _later(self, uid: str, seconds: float = RETRY_SECONDS) -> None:
        async def again() -> None:
            await asyncio.sleep(seconds)
            self._enqueue(uid)

        task = asyncio.create_task(again())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _enqueue(self, uid: str) -> None:
        if uid not in self._queued:
            self._queued.add(uid)
            self._queue.put_nowait(uid)

    # -- what there is --------------------------------------------------------------------------------------

    async def _discover_always(self) -> None:
        await self._crds.synced.wait()
        while True:
            self._rediscover.clear()
            try:
                await self._discover()
            except (ApiException, *NETWORK_ERRORS) as error:
                log.info("discovery failed: %r", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DISCOVERY_SECONDS * 6):
                    await self._rediscover.wait()
                await asyncio.sleep(0.2)

    async def _discover(self) -> None:
        """Start watching new resources, stop watching those that are gone."""
        resources = {
            resource
            for resource in await deletable_resources(self._client)
            if (resource.group_version, resource.plural) not in IGNORED
        }
        self._kinds = {(resource.group_version, resource.kind): resource for resource in resources}
        for resource in resources - self._informers.keys():
            if self._has_definition(resource):
                self._custom.add(resource)
            informer = Informer(self._client, resource, metadata_only=True)
            informer.handlers.append(self._handler(resource))
            self._sources[resource] = informer
            self._informers[resource] = asyncio.create_task(informer.run())
        # One that discovery merely failed to list is still there: its informer goes on.
        for resource in [item for item in self._custom - resources if not self._has_definition(item)]:
            self._custom.discard(resource)
            self._informers.pop(resource).cancel()
            for obj in self._sources.pop(resource).store.values():
                self._gone(obj)

    def _has_definition(self, resource: Resource) -> bool:
        group = resource.group_version.rpartition("/")[0]
        return ("", f"{resource.plural}.{group}") in self._crds.store

    def _handler(self, resource: Resource) -> Handler:
        def hear(old: JsonObject | None, new: JsonObject | None) -> None:
            if new is not None:
                self._seen(resource, new)
            elif old is not None:
                self._gone(old)

        return hear

    def _seen(self, resource: Resource, obj: JsonObject) -> None:
        node = ObjectNode.of(resource, obj)
        before = self.graph.nodes.get(node.uid)
        self.graph.put(node)
        if node.owners or node.waits_for_dependents or node.orphans_dependents:
            self._enqueue(node.uid)
        for owner in (before.owners if before else []) + node.owners:
            parent = self.graph.nodes.get(owner["uid"])
            if parent is not None and parent.waits_for_dependents:
                self._enqueue(parent.uid)

    def _gone(self, obj: JsonObject) -> None:
        uid = obj["metadata"]["uid"]
        node = self.graph.nodes.get(uid)
        self.graph.remove(uid)
        self._absent[uid] = None
        if len(self._absent) > ABSENT_SIZE:
            self._absent.popitem(last=False)
        for dependent in self.graph.dependents(uid):
            self._enqueue(dependent.uid)
        for owner in node.owners if node else []:
            self._enqueue(owner["uid"])

    # -- what follows ---------------------------------------------------------------------------------------

    async def _process(self, uid: str) -> None:
        node = self.graph.nodes.get(uid)
        if node is None:
            return
        if node.orphans_dependents:
            await self._orphan(node)
        elif node.waits_for_dependents:
            await self._foreground(node)
        elif node.owners and not node.deleting:
            await self._follow_owners(node)

    async def _follow_owners(self, node: ObjectNode) -> None:
        states = [await self._owner_state(node, owner) for owner in node.owners]
        action, uids = decide(states)
        if action == "drop-references":
            await self._drop_references(node, set(uids))
        elif action == "delete":
            policy = "Foreground" if uids and self.graph.dependents(node.uid) else "Background"
            log.info("%s %s/%s: owner gone, deleting", node.resource.kind, node.namespace, node.name)
            await self._delete(node, policy)

    async def _owner_state(self, node: ObjectNode, owner: JsonObject) -> OwnerState:
        """Whether the owner exists: known here, or asked of the API server by name and uid."""
        uid = owner["uid"]
        known = self.graph.nodes.get(uid)
        if known is not None:
            same_place = not known.resource.namespaced or known.namespace == node.namespace
            return OwnerState(uid, same_place, known.waits_for_dependents)
        if uid in self._absent:
            return OwnerState(uid, False)
        resource = await self._resource_of(owner)
        namespace = node.namespace if resource.namespaced else None
        try:
            obj = await self._client.get(resource, namespace, owner["name"])
        except ApiException as error:
            if is_status(error, 404):
                return OwnerState(uid, False)
            raise
        return OwnerState(uid, obj["metadata"]["uid"] == uid)

    async def _resource_of(self, owner: JsonObject) -> Resource:
        kind = (owner["apiVersion"], owner["kind"])
        if kind not in self._kinds:
            for resource, _ in await api_resources(self._client):
                self._kinds.setdefault((resource.group_version, resource.kind), resource)
        if kind not in self._kinds:
            raise UnknownOwnerKind(f"no resource serves {kind[1]} of {kind[0]}, owner {owner['name']!r}")
        return self._kinds[kind]

    async def _delete(self, node: ObjectNode, policy: str) -> None:
        try:
            await self._client.delete(
                node.resource,
                node.namespace,
                node.name,
                uid=node.uid,
                resource_version=node.resource_version,
                propagation_policy=policy,
            )
        except ApiException as error:
            # 409: the object has changed since; its newer version is judged again.
            if is_status(error, 409):
                self._later(node.uid)
            elif not is_status(error, 404):
                raise

    async def _drop_references(self, node: ObjectNode, uids: set[str]) -> None:
        owners = [owner for owner in node.owners if owner["uid"] not in uids]
        body = {
            "metadata": {
                "uid": node.uid,
                "resourceVersion": node.resource_version,
                "ownerReferences": owners or None,
            }
        }
        await self._patch(node, body)

    async def _orphan(self, node: ObjectNode) -> None:
        dependents = self.graph.dependents(node.uid)
        for dependent in dependents:
            await self._drop_references(dependent, {node.uid})
        if dependents:
            self._later(node.uid)
            return
        await self._drop_finalizer(node, ORPHAN)

    async def _foreground(self, node: ObjectNode) -> None:
        for dependent in self.graph.dependents(node.uid):
            if not dependent.deleting:
                self._enqueue(dependent.uid)
        if not self.graph.blocking(node.uid):
            await self._drop_finalizer(node, FOREGROUND)

    async def _drop_finalizer(self, node: ObjectNode, finalizer: str) -> None:
        left = [item for item in node.finalizers if item != finalizer]
        body = {"metadata": {"uid": node.uid, "resourceVersion": node.resource_version, "finalizers": left or None}}
        await self._patch(node, body)

    async def _patch(self, node: ObjectNode, body: JsonObject) -> None:
        try:
            await self._client.patch(node.resource, node.namespace, node.name, body)
        except ApiException as error:
            if is_status(error, 409):
                self._later(node.uid)
            elif not is_status(error, 404):
                raise
