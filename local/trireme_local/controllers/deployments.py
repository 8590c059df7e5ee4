"""Deployments: rollouts of ReplicaSets, one per pod template.

Source: k8s.io/kubernetes/pkg/controller/deployment.
"""

from __future__ import annotations

from datetime import UTC, datetime

from trireme_local.controllers import deploymentstatus as conditions
from trireme_local.controllers import rollout
from trireme_local.controllers.claims import Claims, controller_of
from trireme_local.controllers.replicasets import reason_of
from trireme_local.controllers.rollout import replicas_of
from trireme_local.controllers.workqueue import KeyQueue
from trireme_local.events import EventRecorder
from trireme_local.informer import Informer, Key, key_of
from trireme_local.kube import DEPLOYMENTS, REPLICASETS, ApiException, JsonObject, KubeClient, is_status
from trireme_local.quantities import is_finished
from trireme_local.selectors import label_selector_matches


class Deployments:
    """Rolls every Deployment out and keeps its status."""

    def __init__(
        self,
        client: KubeClient,
        pods: Informer,
        replica_sets: Informer,
        deployments: Informer,
        recorder: EventRecorder,
    ) -> None:
        self._client = client
        self._pods, self._replica_sets, self._deployments = pods, replica_sets, deployments
        self._recorder = recorder
        self._claims = Claims(client, DEPLOYMENTS, REPLICASETS)
        self.queue = KeyQueue("deployment", self.visit)
        deployments.handlers.append(self._on_deployment)
        replica_sets.handlers.append(self._on_replica_set)
        pods.handlers.append(self._on_pod)

    async def run(self) -> None:
        """Work until cancelled."""
        for informer in (self._pods, self._replica_sets, self._deployments):
            await informer.synced.wait()
        for key in self._deployments.store:
            self.queue.add(key)
        await self.queue.run()

    # -- what happens -----------------------------------------------------------------------------------------

    def _on_deployment(self, old: JsonObject | None, new: JsonObject | None) -> None:
        obj = new or old
        assert obj is not None
        self.queue.add(key_of(obj))

    def _owner_key(self, replica_set: JsonObject) -> Key | None:
        reference = controller_of(replica_set)
        if reference is None or reference["kind"] != DEPLOYMENTS.kind:
            return None
        return replica_set["metadata"]["namespace"], reference["name"]

    def _on_replica_set(self, old: JsonObject | None, new: JsonObject | None) -> None:
        for obj in (old, new):
            if obj is not None and (key := self._owner_key(obj)) is not None:
                self.queue.add(key)
        if new is not None and controller_of(new) is None:
            namespace, labels = new["metadata"]["namespace"], new["metadata"].get("labels")
            for key, item in self._deployments.store.items():
                if key[0] == namespace and label_selector_matches(item["spec"].get("selector"), labels):
                    self.queue.add(key)

    def _on_pod(self, old: JsonObject | None, new: JsonObject | None) -> None:
        """Recreate starts the new pods only once the last old one is gone."""
        if new is not None or old is None:
            return
        namespace, reference = old["metadata"]["namespace"], controller_of(old)
        owner = self._replica_sets.store.get((namespace, reference["name"])) if reference else None
        if owner is not None and (key := self._owner_key(owner)) is not None:
            deployment = self._deployments.store.get(key)
            if deployment is not None and not rollout.is_rolling(deployment):
                self.queue.add(key)

    # -- what follows -----------------------------------------------------------------------------------------

    async def visit(self, key: Key) -> None:
        """Take one Deployment a step further."""
        deployment = self._deployments.store.get(key)
        if deployment is None:
            return
        namespace = key[0]
        candidates = [item for item_key, item in self._replica_sets.store.items() if item_key[0] == namespace]
        replica_sets = await self._claims.settle(deployment, candidates)
        await _Rollout(self, deployment, replica_sets).run()

    @property
    def client(self) -> KubeClient:
        """The connection to the API server."""
        return self._client

    def record(self, deployment: JsonObject, kind: str, reason: str, message: str) -> None:
        """Record an event about the Deployment."""
        self._recorder.record(deployment, kind, reason, message)

    def has_old_pods(self, replica_sets: list[JsonObject]) -> bool:
        """Whether a pod of these ReplicaSets may still be running, those on their way out included."""
        uids = {item["metadata"]["uid"] for item in replica_sets}
        return any(
            (controller_of(pod) or {}).get("uid") in uids and not is_finished(pod) for pod in self._pods.store.values()
        )


class _Rollout:
    """One visit of one Deployment."""

    def __init__(self, parent: Deployments, deployment: JsonObject, replica_sets: list[JsonObject]) -> None:
        self._parent, self._client = parent, parent.client
        self._deployment = deployment
        self._namespace, self._name = key_of(deployment)
        self._new, self._old = rollout.new_and_old(deployment, replica_sets)

    @property
    def _all(self) -> list[JsonObject]:
        return [*self._old, *([self._new] if self._new is not None else [])]

    async def run(self) -> None:
        """Decide what kind of step it is, and take it."""
        deployment = self._deployment
        if deployment["metadata"].get("deletionTimestamp"):
            await self._write_counts()
            return
        await self._note_pause()
        await self._sync_revision()
        if deployment["spec"].get("paused"):
            await self._scale()
            await self._clean_up()
            await self._write_counts()
        elif rollout.is_scaling(deployment, self._all):
            await self._scale()
            await self._write_counts()
        elif rollout.is_rolling(deployment):
            await self._roll()
        else:
            await self._recreate()

    # -- revisions --------------------------------------------------------------------------------------------

    async def _note_pause(self) -> None:
        """Progressing says when a rollout is paused and resumed: a pause is no lack of progress."""
        if not conditions.has_deadline(self._deployment):
            return
        known = (self._deployment.get("status") or {}).get("conditions") or []
        current = conditions.condition(known, conditions.PROGRESSING)
        if current is not None and current.get("reason") == conditions.TIMED_OUT:
            return
        paused = bool(self._deployment["spec"].get("paused"))
        said = current is not None and current.get("reason") == conditions.PAUSED
        if paused and not said:
            fresh = conditions.make(conditions.PROGRESSING, "Unknown", conditions.PAUSED, "Deployment is paused")
        elif said and not paused:
            fresh = conditions.make(conditions.PROGRESSING, "Unknown", conditions.RESUMED, "Deployment is resumed")
        else:
            return
        await self._write_condition(fresh)

    async def _sync_revision(self) -> None:
        """Bring the annotations of the new ReplicaSet, where it is there, and of the Deployment up to date."""
        if self._new is None:
            return
        annotations = rollout.revision_annotations(self._deployment, self._new, self._old)
        minimum = self._deployment["spec"].get("minReadySeconds", 0)
        same = annotations == (self._new["metadata"].get("annotations") or {})
        if not same or minimum != self._new["spec"].get("minReadySeconds", 0):
            body = {"metadata": {"annotations": annotations}, "spec": {"minReadySeconds": minimum}}
            self._new = await self._patch_replica_set(self._new, body)
        await self._write_revision(self._new)
        known = (self._deployment.get("status") or {}).get("conditions") or []
        missing = conditions.condition(known, conditions.PROGRESSING) is None
        if conditions.has_deadline(self._deployment) and missing:
            text = f'Found new replica set "{self._new["metadata"]["name"]}"'
            await self._write_condition(conditions.make(conditions.PROGRESSING, "True", "FoundNewReplicaSet", text))

    async def _write_revision(self, new: JsonObject) -> None:
        annotations = self._deployment["metadata"].get("annotations") or {}
        number = new["metadata"]["annotations"].get(rollout.REVISION)
        if number is None or annotations.get(rollout.REVISION) == number:
            return
        metadata = self._deployment["metadata"]
        body = {
            "metadata": {
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
                "annotations": {rollout.REVISION: number},
            }
        }
        self._deployment = await self._client.patch(DEPLOYMENTS, self._namespace, self._name, body)

    async def _create_new(self) -> bool:
        """Create the new ReplicaSet where it is missing; False when that has to be tried again under another name."""
        if self._new is not None:
            return True
        deployment = self._deployment
        collisions = (deployment.get("status") or {}).get("collisionCount", 0)
        name_hash = rollout.template_hash(deployment["spec"]["template"], collisions)
        body = rollout.new_replica_set(deployment, name_hash, self._old)
        name = body["metadata"]["name"]
        try:
            self._new = await self._client.create(REPLICASETS, self._namespace, body)
        except ApiException as error:
            if is_status(error, 409):
                return await self._take_existing(name)
            text = f'Failed to create new replica set "{name}": {reason_of(error)}'
            if conditions.has_deadline(deployment):
                await self._write_condition(
                    conditions.make(conditions.PROGRESSING, "False", "ReplicaSetCreateError", text)
                )
            self._parent.record(deployment, "Warning", "ReplicaSetCreateError", text)
            raise
        if size := replicas_of(self._new):
            text = f"Scaled up replica set {name} from 0 to {size}"
            self._parent.record(deployment, "Normal", "ScalingReplicaSet", text)
        await self._write_revision(self._new)
        if conditions.has_deadline(deployment):
            text = f'Created new replica set "{name}"'
            await self._write_condition(conditions.make(conditions.PROGRESSING, "True", "NewReplicaSetCreated", text))
        return True

    async def _take_existing(self, name: str) -> bool:
        """A ReplicaSet of that name is there: ours, not seen yet, or somebody else's with the same hash."""
        found = await self._client.get(REPLICASETS, self._namespace, name)
        owner, template = controller_of(found), self._deployment["spec"]["template"]
        ours = owner is not None and owner["uid"] == self._deployment["metadata"]["uid"]
        if ours and rollout.same_template(found["spec"]["template"], template):
            self._new = found
            return True
        status = dict(self._deployment.get("status") or {})
        status["collisionCount"] = status.get("collisionCount", 0) + 1
        await self._write_status(status)
        return False

    # -- strategies -------------------------------------------------------------------------------------------

    async def _roll(self) -> None:
        """RollingUpdate: grow the new ReplicaSet within the surge, shrink old ones within what may be unavailable."""
        if not await self._create_new():
            return
        assert self._new is not None
        if not await self._grow_new() and not await self._shrink_old() and self._is_complete():
            await self._clean_up()
        await self._write_rollout()

    async def _grow_new(self) -> bool:
        assert self._new is not None
        wanted, mine = replicas_of(self._deployment), replicas_of(self._new)
        size = wanted if mine > wanted else rollout.new_replicas(self._deployment, self._all, self._new)
        return mine != wanted and await self._resize(self._new, size)

    async def _shrink_old(self) -> bool:
        if not rollout.active(self._old):
            return False
        changed = False
        for item, size in rollout.old_scale_down(self._deployment, self._old, self._new):
            changed |= await self._resize(item, size)
        return changed

    async def _recreate(self) -> None:
        """Recreate: all old pods go before the first new one comes."""
        changed = False
        for item in rollout.active(self._old):
            changed |= await self._resize(item, 0)
        if changed or self._parent.has_old_pods(self._old):
            await self._write_rollout()
            return
        if not await self._create_new():
            return
        assert self._new is not None
        await self._resize(self._new, replicas_of(self._deployment))
        if self._is_complete():
            await self._clean_up()
        await self._write_rollout()

    async def _scale(self) -> None:
        """The Deployment was resized: resize what is there, in proportion where a rollout is under way."""
        live = rollout.active(self._all)
        if len(live) <= 1:
            latest = live[0] if live else self._new or next(reversed(self._old), None)
            if latest is not None:
                await self._resize(latest, replicas_of(self._deployment), annotate=True)
        elif rollout.is_saturated(self._deployment, self._new):
            for item in rollout.active(self._old):
                await self._resize(item, 0)
        elif rollout.is_rolling(self._deployment):
            for item, size in rollout.proportional_sizes(self._deployment, self._all):
                await self._resize(item, size, annotate=True)

    async def _clean_up(self) -> None:
        for item in rollout.to_clean_up(self._deployment, self._old):
            metadata = item["metadata"]
            try:
                await self._client.delete(
                    REPLICASETS,
                    self._namespace,
                    metadata["name"],
                    uid=metadata["uid"],
                    resource_version=metadata["resourceVersion"],
                    propagation_policy="Background",
                )
            except ApiException as error:
                if not is_status(error, 404, 409):
                    raise

    # -- writes -----------------------------------------------------------------------------------------------

    async def _patch_replica_set(self, replica_set: JsonObject, body: JsonObject) -> JsonObject:
        """Patch it as it was seen. Raises `ApiException` 409 when it has changed since."""
        metadata = replica_set["metadata"]
        body["metadata"] |= {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
        fresh = await self._client.patch(REPLICASETS, self._namespace, metadata["name"], body)
        if self._new is replica_set:
            self._new = fresh
        self._old = [fresh if item is replica_set else item for item in self._old]
        return fresh

    async def _resize(self, replica_set: JsonObject, size: int, *, annotate: bool = False) -> bool:
        """Set what a ReplicaSet wants, with the Deployment's size beside it; whether that is another number.

        `annotate`: the annotations are written even where the number stays.
        """
        before = replicas_of(replica_set)
        annotations = rollout.scale_annotations(self._deployment)
        current = replica_set["metadata"].get("annotations") or {}
        if before == size and (not annotate or annotations.items() <= current.items()):
            return False
        body = {"metadata": {"annotations": annotations}, "spec": {"replicas": size}}
        await self._patch_replica_set(replica_set, body)
        if before == size:
            return False
        way, name = "up" if size > before else "down", replica_set["metadata"]["name"]
        text = f"Scaled {way} replica set {name} from {before} to {size}"
        self._parent.record(self._deployment, "Normal", "ScalingReplicaSet", text)
        return True

    def _is_complete(self) -> bool:
        return conditions.is_complete(self._deployment, self._deployment.get("status") or {})

    async def _write_condition(self, fresh: JsonObject) -> None:
        status = dict(self._deployment.get("status") or {})
        status["conditions"] = conditions.with_condition(status.get("conditions") or [], fresh)
        await self._write_status(status)

    async def _write_counts(self) -> None:
        await self._write_status(conditions.counts_of(self._deployment, self._all, self._new))

    async def _write_rollout(self) -> None:
        await self._write_status(conditions.rollout_status(self._deployment, self._all, self._new))
        self._look_again_at_deadline()

    async def _write_status(self, status: JsonObject) -> None:
        if status == (self._deployment.get("status") or {}):
            return
        body = {**self._deployment, "status": status}
        self._deployment = await self._client.replace(DEPLOYMENTS, self._namespace, self._name, body, sub="status")

    def _look_again_at_deadline(self) -> None:
        """Nothing happens when a rollout is stuck: look again when its deadline has passed."""
        known = (self._deployment.get("status") or {}).get("conditions") or []
        current = conditions.condition(known, conditions.PROGRESSING)
        if current is None or current.get("reason") == conditions.TIMED_OUT or self._is_complete():
            return
        deadline = conditions.deadline_of(self._deployment, known)
        if deadline is not None:
            seconds = (deadline - datetime.now(UTC)).total_seconds()
            self._parent.queue.add_after((self._namespace, self._name), max(1.0, seconds + 1.0))
