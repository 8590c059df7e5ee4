"""ReplicaSets: as many pods as each asks for.

Source: k8s.io/kubernetes/pkg/controller/replicaset.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from trireme_local.controllers.claims import Claims, controller_of, controller_reference
from trireme_local.controllers.expectations import Expectations
from trireme_local.controllers.podranking import is_active, is_available, pods_to_delete, ready_since
from trireme_local.controllers.workqueue import KeyQueue
from trireme_local.events import EventRecorder, now_text
from trireme_local.informer import Informer, Key, key_of
from trireme_local.kube import (
    NETWORK_ERRORS,
    PODS,
    REPLICASETS,
    ApiException,
    JsonObject,
    KubeClient,
    is_status,
)
from trireme_local.selectors import label_selector_matches

log = logging.getLogger(__name__)

BURST_REPLICAS = 500
SLOW_START_BATCH = 1


def pod_from_template(replica_set: JsonObject) -> JsonObject:
    """A new pod of the ReplicaSet."""
    template = replica_set["spec"]["template"]
    kept = {
        key: value
        for key, value in (template.get("metadata") or {}).items()
        if key in ("labels", "annotations", "finalizers")
    }
    metadata = {
        **kept,
        "generateName": f"{replica_set['metadata']['name']}-",
        "ownerReferences": [controller_reference(replica_set, REPLICASETS)],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def replica_status(
    replica_set: JsonObject, pods: list[JsonObject], failure: tuple[str, str] | None, now: datetime | None = None
) -> JsonObject:
    """The status of a ReplicaSet that owns the active `pods`; `failure` is the reason and message of the last try."""
    moment = now or datetime.now(UTC)
    spec, before = replica_set["spec"], replica_set.get("status") or {}
    wanted = (spec["template"].get("metadata") or {}).get("labels") or {}
    labelled = sum(wanted.items() <= (pod["metadata"].get("labels") or {}).items() for pod in pods)
    minimum = spec.get("minReadySeconds", 0)
    counts = {
        "fullyLabeledReplicas": labelled,
        "readyReplicas": sum(ready_since(pod) is not None for pod in pods),
        "availableReplicas": sum(is_available(pod, minimum, moment) for pod in pods),
    }
    conditions = [item for item in before.get("conditions") or [] if item["type"] != "ReplicaFailure"]
    if failure is not None:
        known = next((item for item in before.get("conditions") or [] if item["type"] == "ReplicaFailure"), None)
        reason, message = failure
        conditions.append(
            known
            or {
                "type": "ReplicaFailure",
                "status": "True",
                "reason": reason,
                "message": message,
                "lastTransitionTime": now_text(),
            }
        )
    return {
        "replicas": len(pods),
        **{key: value for key, value in counts.items() if value},
        "observedGeneration": replica_set["metadata"].get("generation", 1),
        **({"conditions": conditions} if conditions else {}),
    }


class ReplicaSets:
    """Keeps every ReplicaSet's pods and status."""

    def __init__(self, client: KubeClient, pods: Informer, replica_sets: Informer, recorder: EventRecorder) -> None:
        self._client = client
        self._pods, self._replica_sets = pods, replica_sets
        self._recorder = recorder
        self._claims = Claims(client, REPLICASETS, PODS)
        self.expectations = Expectations()
        self.queue = KeyQueue("replica set", self.visit)
        replica_sets.handlers.append(self._on_replica_set)
        pods.handlers.append(self._on_pod)

    async def run(self) -> None:
        """Work until cancelled."""
        await self._pods.synced.wait()
        await self._replica_sets.synced.wait()
        for key in self._replica_sets.store:
            self.queue.add(key)
        await self.queue.run()

    # -- what happens -----------------------------------------------------------------------------------------

    def _on_replica_set(self, old: JsonObject | None, new: JsonObject | None) -> None:
        obj = new or old
        assert obj is not None
        if new is None:
            self.expectations.forget(obj["metadata"]["uid"])
        self.queue.add(key_of(obj))

    def _owner(self, pod: JsonObject) -> JsonObject | None:
        """The ReplicaSet that controls the pod."""
        reference = controller_of(pod)
        if reference is None or reference["kind"] != REPLICASETS.kind:
            return None
        owner = self._replica_sets.store.get((pod["metadata"]["namespace"], reference["name"]))
        return owner if owner is not None and owner["metadata"]["uid"] == reference["uid"] else None

    def _on_pod(self, old: JsonObject | None, new: JsonObject | None) -> None:
        pod = new or old
        assert pod is not None
        uid = pod["metadata"]["uid"]
        owner = self._owner(pod)
        going = new is None or bool(new["metadata"].get("deletionTimestamp"))
        if old is not None and (before := self._owner(old)) is not None and before is not owner:
            self.queue.add(key_of(before))
        if owner is not None:
            owner_uid = owner["metadata"]["uid"]
            if old is None:
                self.expectations.created(owner_uid)
            if going:
                self.expectations.deleted(owner_uid, uid)
            self.queue.add(key_of(owner))
            minimum = owner["spec"].get("minReadySeconds", 0)
            if minimum and not going and ready_since(pod) and (old is None or not ready_since(old)):
                # Available only later, and nothing else will say so then.
                self.queue.add_after(key_of(owner), minimum + 1)
        elif controller_of(pod) is None and not going:
            for key in self._that_select(pod):
                self.queue.add(key)

    def _that_select(self, pod: JsonObject) -> list[Key]:
        namespace, labels = pod["metadata"]["namespace"], pod["metadata"].get("labels")
        return [
            key
            for key, item in self._replica_sets.store.items()
            if key[0] == namespace and label_selector_matches(item["spec"].get("selector"), labels)
        ]

    # -- what follows -----------------------------------------------------------------------------------------

    def _active_pods(self, namespace: str) -> list[JsonObject]:
        return [pod for key, pod in self._pods.store.items() if key[0] == namespace and is_active(pod)]

    async def visit(self, key: Key) -> None:
        """Bring one ReplicaSet's pods and status up to date."""
        replica_set = self._replica_sets.store.get(key)
        if replica_set is None:
            return
        namespace = key[0]
        due = self.expectations.satisfied(replica_set["metadata"]["uid"])
        pods = await self._claims.settle(replica_set, self._active_pods(namespace))
        failure, error = None, None
        if due and not replica_set["metadata"].get("deletionTimestamp"):
            failure, error = await self._manage(replica_set, pods)
        stored = await self._write_status(replica_set, replica_status(replica_set, pods, failure))
        status, minimum = stored.get("status") or {}, replica_set["spec"].get("minReadySeconds", 0)
        if minimum and status.get("readyReplicas", 0) != status.get("availableReplicas", 0):
            self.queue.add_after(key, minimum)
        if error is not None:
            raise error

    async def _manage(
        self, replica_set: JsonObject, pods: list[JsonObject]
    ) -> tuple[tuple[str, str] | None, Exception | None]:
        """Create what is missing or delete what is too much; the failure to report and the error to try again for."""
        missing = replica_set["spec"]["replicas"] - len(pods)
        uid = replica_set["metadata"]["uid"]
        if missing > 0:
            count = min(missing, BURST_REPLICAS)
            self.expectations.expect(uid, creations=count)
            tried, error = await slow_start(count, lambda: self._create(replica_set))
            for _ in range(count - tried):
                self.expectations.created(uid)
            return (("FailedCreate", reason_of(error)), error) if error is not None else (None, None)
        if missing < 0:
            related = self._related(replica_set)
            chosen = pods_to_delete(pods, min(-missing, BURST_REPLICAS), related)
            self.expectations.expect(uid, deletions=[pod["metadata"]["uid"] for pod in chosen])
            results = await asyncio.gather(*(self._delete(replica_set, pod) for pod in chosen))
            error = next((item for item in results if item is not None), None)
            return (("FailedDelete", reason_of(error)), error) if error is not None else (None, None)
        return None, None

    async def _create(self, replica_set: JsonObject) -> Exception | None:
        metadata = replica_set["metadata"]
        try:
            pod = await self._client.create(PODS, metadata["namespace"], pod_from_template(replica_set))
        except (ApiException, *NETWORK_ERRORS) as error:
            self.expectations.created(metadata["uid"])
            if _namespace_goes(error):
                return None
            self._recorder.record(replica_set, "Warning", "FailedCreate", f"Error creating: {reason_of(error)}")
            return error
        self._recorder.record(replica_set, "Normal", "SuccessfulCreate", f"Created pod: {pod['metadata']['name']}")
        return None

    async def _delete(self, replica_set: JsonObject, pod: JsonObject) -> Exception | None:
        namespace, name = key_of(pod)
        try:
            await self._client.delete(PODS, namespace, name, uid=pod["metadata"]["uid"])
        except (ApiException, *NETWORK_ERRORS) as error:
            self.expectations.deleted(replica_set["metadata"]["uid"], pod["metadata"]["uid"])
            if is_status(error, 404, 409):
                return None
            self._recorder.record(replica_set, "Warning", "FailedDelete", f"Error deleting: {reason_of(error)}")
            return error
        self._recorder.record(replica_set, "Normal", "SuccessfulDelete", f"Deleted pod: {name}")
        return None

    def _related(self, replica_set: JsonObject) -> list[JsonObject]:
        """The active pods of all ReplicaSets with the same controller, or of this one where it has none."""
        namespace, reference = replica_set["metadata"]["namespace"], controller_of(replica_set)
        uids = {replica_set["metadata"]["uid"]}
        for (item_namespace, _), item in self._replica_sets.store.items():
            other = controller_of(item)
            same = reference is not None and other is not None and other["uid"] == reference["uid"]
            if item_namespace == namespace and same:
                uids.add(item["metadata"]["uid"])
        return [pod for pod in self._active_pods(namespace) if (controller_of(pod) or {}).get("uid") in uids]

    async def _write_status(self, replica_set: JsonObject, status: JsonObject) -> JsonObject:
        if status == (replica_set.get("status") or {}):
            return replica_set
        namespace, name = key_of(replica_set)
        try:
            return await self._client.replace(
                REPLICASETS, namespace, name, {**replica_set, "status": status}, sub="status"
            )
        except ApiException as error:
            if is_status(error, 404):
                return replica_set
            raise


async def slow_start(count: int, create: Callable[[], Awaitable[Exception | None]]) -> tuple[int, Exception | None]:
    """Create in batches of 1, 2, 4, ... until one fails, so that a refusal is not repeated hundreds of times.

    Returns how many were tried and the first error.
    """
    tried, batch = 0, SLOW_START_BATCH
    while tried < count:
        size = min(batch, count - tried)
        results = await asyncio.gather(*(create() for _ in range(size)))
        tried += size
        if (error := next((item for item in results if item is not None), None)) is not None:
            return tried, error
        batch *= 2
    return tried, None


def reason_of(error: Exception | None) -> str:
    """What an error says to people."""
    return str(error.reason) if isinstance(error, ApiException) else repr(error)


def _namespace_goes(error: BaseException) -> bool:
    """Whether a create was refused because its namespace is being deleted: no retry changes that."""
    body = str(getattr(error, "body", "") or "")
    return is_status(error, 403) and "NamespaceTerminating" in body
