"""Executes decisions. Every write is idempotent, has a deterministic name or a precondition, and may be repeated."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from trireme.resources import GROUP, VERSION
from trireme.resources.status import JobStatus
from trireme_operator import build
from trireme_operator.apply.api import Api, ApiError, JsonObject, path_of
from trireme_operator.apply.events import EventRecorder
from trireme_operator.build.names import controlled_by
from trireme_operator.decide import (
    Action,
    CreatePod,
    Decision,
    DeleteJob,
    DeletePod,
    EnsureObjects,
    JobEvent,
    Kind,
    Observed,
    Obstacle,
    PutTarget,
    refuse,
    situation,
)
from trireme_operator.metrics import INSTRUMENTS

log = logging.getLogger(__name__)


class NotLeading(Exception):
    """Leadership ended before an action; the next leader does it."""


class Stale(Exception):
    """What a decision was based on is no longer so; look again."""


NAME_TAKEN = "NameTaken"


class NameTaken(ApiError):
    """An object of another owner has a name that the job needs."""

    def __init__(self, what: str, name: str, found: JsonObject, names: build.Names) -> None:
        owners = found["metadata"].get("ownerReferences") or []
        self.leaving = any((o.get("kind"), o.get("name")) == (names.kind, names.job) for o in owners)
        whose = "an earlier job of this name" if self.leaving else "another owner"
        super().__init__(409, NAME_TAKEN, f"{what} {name} exists and belongs to {whose}; waiting until it is gone")


class Agents(Protocol):
    """Who can give targets to agents."""

    def tell(self, job_uid: str, put: PutTarget) -> None:
        """Give one agent its target; does not wait for it."""


class Executor:
    """Carries out one decision at a time per job."""

    def __init__(
        self,
        api: Api,
        agents: Agents,
        events: EventRecorder,
        keys: Sequence[bytes],
        leading: Callable[[], bool],
        on_job: Callable[[JsonObject], None],
        on_pod: Callable[[str, JsonObject], None],
        obstacles: dict[str, Obstacle],
    ) -> None:
        self._api = api
        self._agents = agents
        self._events = events
        self._keys = keys  # the first is for new Secrets
        self._leading = leading
        self._on_job = on_job
        self._on_pod = on_pod
        self._obstacles = obstacles  # by job UID; for the conditions of later passes

    async def execute(self, observed: Observed, raw: JsonObject, kind: Kind, decision: Decision) -> None:
        """Write the status, or do the actions. Raises NotLeading, Stale or ApiError."""
        if decision.status is not None and decision.status.resolved and not observed.job.status.resolved:
            decision = await self._try_pod(observed, kind, decision, decision.status)
        for event in decision.told:
            await self._events.ensure(observed.job, event)
        if decision.status is not None:
            await self._write_status(observed, raw, kind, decision.status)
        else:
            await self._act(observed, kind, decision.actions)
        for event in decision.events:
            await self._events.record(observed.job, event)

    async def _try_pod(self, observed: Observed, kind: Kind, decision: Decision, accepted: JobStatus) -> Decision:
        """`decision`, or a refusal when the API server calls the pods that it leads to invalid.

        What a pod may say is the API server's to know: a toleration's operator, a mount without its volume.
        """
        self._check()
        s = situation(replace(observed, job=replace(observed.job, status=accepted)), kind)
        assert s is not None
        names = self._names(observed)
        try:
            manifest = build.pod(names, s.spec, s.resolved, 0, self._keys[0])
            await self._api.create(path_of("", "v1", "pods", names.namespace), manifest, dry_run=True)
        except ApiError as error:
            if refused_by_validation(error):
                return refuse(observed, "InvalidPod", f"spec.workers: {error.message}")
            # Quotas, policies, webhooks and outages may change: the real creation tells of them and is tried again.
        return decision

    async def _write_status(self, observed: Observed, raw: JsonObject, kind: Kind, status: JobStatus) -> None:
        self._check()
        job = observed.job
        metadata = {k: v for k, v in raw["metadata"].items() if k != "managedFields"}
        body = {**raw, "metadata": metadata, "status": status.model_dump(mode="json", by_alias=True, exclude_none=True)}
        path = path_of(GROUP, VERSION, kind.plural, job.namespace, job.name, "status")
        try:
            self._on_job(await self._api.replace(path, body))
        except ApiError as error:
            if error.status in (404, 409):
                raise Stale(f"status of {job.namespace}/{job.name}: {error}") from error
            raise

    async def _act(self, observed: Observed, kind: Kind, actions: tuple[Action, ...]) -> None:
        if any(isinstance(action, DeletePod | DeleteJob) for action in actions):
            await self._confirm(observed, kind)
        puts = [action for action in actions if isinstance(action, PutTarget)]
        if puts:
            self._check()
            for put in puts:
                self._agents.tell(observed.job.uid, put)
        for action in actions:
            if isinstance(action, PutTarget):
                continue
            self._check()
            try:
                await self._one(observed, kind, action)
            except ApiError as error:
                if isinstance(action, EnsureObjects | CreatePod):
                    await self._note_obstacle(observed, action, error)
                raise
        if any(isinstance(action, CreatePod) for action in actions):
            self._obstacles.pop(observed.job.uid, None)
        for action in actions:
            INSTRUMENTS.actions.labels(type(action).__name__).inc()

    async def _confirm(self, observed: Observed, kind: Kind) -> None:
        """Before anything is destroyed: is the job still the one, and in the state, that was decided upon?"""
        job = observed.job
        path = path_of(GROUP, VERSION, kind.plural, job.namespace, job.name)
        try:
            fresh = await self._api.get(path)
        except ApiError as error:
            if error.status == 404:
                raise Stale(f"{job.namespace}/{job.name} is gone") from error
            raise
        if fresh["metadata"]["resourceVersion"] != job.resource_version:
            self._on_job(fresh)
            raise Stale(f"{job.namespace}/{job.name} changed since it was looked at")

    def _check(self) -> None:
        if not self._leading():
            raise NotLeading

    async def _one(self, observed: Observed, kind: Kind, action: Action) -> None:
        handlers: dict[type[Any], Callable[[Observed, Kind, Any], Awaitable[None]]] = {
            EnsureObjects: self._ensure_objects,
            CreatePod: self._create_pod,
            DeletePod: self._delete_pod,
            DeleteJob: self._delete_job,
        }
        await handlers[type(action)](observed, kind, action)

    def _names(self, observed: Observed) -> build.Names:
        job = observed.job
        return build.Names(kind=job.kind, namespace=job.namespace, job=job.name, uid=job.uid)

    def _key(self, observed: Observed, names: build.Names) -> bytes:
        """That of the pods that are there: the agents of a gang ask each other for the token, too. Else the first."""
        in_use = {pod.token_secret for pod in observed.pods}
        return next((key for key in self._keys if names.secret(key) in in_use), self._keys[0])

    async def _note_obstacle(self, observed: Observed, action: EnsureObjects | CreatePod, error: ApiError) -> None:
        """Have the next pass's conditions tell why nothing is created; an outage of the API server is no reason."""
        if error.status == 0:
            return
        reason = NAME_TAKEN if isinstance(error, NameTaken) else "PodNotCreated"
        name = self._names(observed).pod(action.slot) if isinstance(action, CreatePod) else "the pods' objects"
        self._obstacles[observed.job.uid] = Obstacle(reason, f"{name}: {error.message}")
        if not (isinstance(error, NameTaken) and error.leaving):
            await self._events.record(observed.job, JobEvent("Warning", reason, f"{name}: {error.message}"))

    async def _ensure_objects(self, observed: Observed, kind: Kind, _: EnsureObjects) -> None:
        s, names = situation(observed, kind), self._names(observed)
        assert s is not None
        await self._ensure(names, "services", build.service(names))
        await self._ensure(names, "configmaps", build.config_map(names, s.spec, s.resolved, s.status.inputs))
        await self._ensure(names, "secrets", build.agent_secret(names, self._key(observed, names)))

    async def _ensure(self, names: build.Names, plural: str, manifest: JsonObject) -> None:
        """Create and never change: the objects are immutable, and an upgrade may render them differently."""
        name = manifest["metadata"]["name"]
        try:
            await self._api.create(path_of("", "v1", plural, names.namespace), manifest)
        except ApiError as error:
            if not error.already_exists:
                raise
            if plural == "secrets":
                return  # Secrets are not read. With a foreign token in it the agents answer 401, and no more.
            try:
                found = await self._api.get(path_of("", "v1", plural, names.namespace, name))
            except ApiError as missing:
                if missing.status == 404:
                    raise Stale(f"{plural} {names.namespace}/{name}: {missing}") from missing
                raise
            if not controlled_by(found, names.uid):
                raise NameTaken(manifest["kind"], name, found, names) from error

    async def _create_pod(self, observed: Observed, kind: Kind, action: CreatePod) -> None:
        s, names = situation(observed, kind), self._names(observed)
        assert s is not None
        key = self._key(observed, names)
        manifest = build.pod(names, s.spec, s.resolved, action.slot, key, action.excluded_nodes)
        path, name = path_of("", "v1", "pods", names.namespace), names.pod(action.slot)
        try:
            created = await self._api.create(path, manifest)
        except ApiError as error:
            if not error.already_exists:
                raise
            # By a list: the operator has no other use for the verb to get one pod.
            found = await self._api.list_all(path, query=(("fieldSelector", f"metadata.name={name}"),))
            if not found:
                raise Stale(f"pod {names.namespace}/{name} is gone again") from error
            if not controlled_by(found[0], names.uid):
                raise NameTaken("Pod", name, found[0], names) from error
            log.info("pod %s/%s exists already", names.namespace, name)
            created = found[0]
        self._on_pod("ADDED", created)

    async def _delete_pod(self, observed: Observed, _: Kind, action: DeletePod) -> None:
        job = observed.job
        log.info("deleting pod %s/%s: %s%s", job.namespace, action.name, action.reason, " (force)" * action.force)
        try:
            deleted = await self._api.delete(
                path_of("", "v1", "pods", job.namespace, action.name),
                uid=action.uid,
                resource_version=action.resource_version,
                grace_seconds=0 if action.force else action.grace_seconds,
            )
        except ApiError as error:
            if error.status in (404, 409):
                raise Stale(f"pod {job.namespace}/{action.name}: {error}") from error
            raise
        if deleted.get("kind") == "Pod" and not action.force:
            self._on_pod("MODIFIED", deleted)

    async def _delete_job(self, observed: Observed, kind: Kind, _: DeleteJob) -> None:
        job = observed.job
        try:
            await self._api.delete(path_of(GROUP, VERSION, kind.plural, job.namespace, job.name), uid=job.uid)
        except ApiError as error:
            if error.status not in (404, 409):
                raise


def refused_by_validation(error: ApiError) -> bool:
    """Whether the API server itself cannot take the pod, now or later.

    Policies deny with the same codes (ValidatingAdmissionPolicy 422 Invalid, webhooks often 400), but name no field.
    """
    if error.status == 400:
        return "cannot be handled as a Pod" in error.message
    return error.status == 422 and error.reason == "Invalid" and bool(error.fields)
