"""Executes decisions. Every write is idempotent, has a deterministic name or a precondition, and may be repeated."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Protocol

from trireme.resources import GROUP, VERSION
from trireme.resources.status import JobStatus
from trireme_operator import build, metrics
from trireme_operator.apply.api import Api, ApiError, JsonObject, path_of
from trireme_operator.apply.events import EventRecorder
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
    PutTarget,
    refuse,
    situation,
)

log = logging.getLogger(__name__)


class NotLeading(Exception):
    """Leadership ended before an action; the next leader does it."""


class Stale(Exception):
    """What a decision was based on is no longer so; look again."""


class Agents(Protocol):
    """Who can give targets to agents."""

    async def put(self, job_uid: str, put: PutTarget) -> None:
        """Give one agent its target."""


class Executor:
    """Carries out one decision at a time per job."""

    def __init__(
        self,
        api: Api,
        agents: Agents,
        events: EventRecorder,
        key: bytes,
        leading: Callable[[], bool],
        on_job: Callable[[JsonObject], None],
        on_pod: Callable[[str, JsonObject], None],
    ) -> None:
        self._api = api
        self._agents = agents
        self._events = events
        self._key = key
        self._leading = leading
        self._on_job = on_job
        self._on_pod = on_pod

    async def execute(self, observed: Observed, raw: JsonObject, kind: Kind, decision: Decision) -> None:
        """Write the status, or do the actions. Raises NotLeading, Stale or ApiError."""
        if decision.status is not None and decision.status.resolved and not observed.job.status.resolved:
            decision = await self._try_pod(observed, kind, decision, decision.status)
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
            manifest = build.pod(names, s.spec, s.resolved, 0)
            await self._api.create(path_of("", "v1", "pods", names.namespace), manifest, dry_run=True)
        except ApiError as error:
            if error.status in (400, 422):
                return refuse(observed, "InvalidPod", f"spec.workers: {error.message}")
            # Quotas, admission and outages may change: the real creation tells of them and is tried again.
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
            await asyncio.gather(*(self._agents.put(observed.job.uid, put) for put in puts))
        for action in actions:
            if isinstance(action, PutTarget):
                continue
            self._check()
            await self._one(observed, kind, action)
        for action in actions:
            metrics.ACTIONS.labels(type(action).__name__).inc()

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

    async def _ensure_objects(self, observed: Observed, kind: Kind, _: EnsureObjects) -> None:
        s, names = situation(observed, kind), self._names(observed)
        assert s is not None
        namespace = names.namespace
        await asyncio.gather(
            self._api.apply(path_of("", "v1", "services", namespace, names.service), build.service(names)),
            self._api.apply(
                path_of("", "v1", "configmaps", namespace, names.config_map),
                build.config_map(names, s.spec, s.resolved),
            ),
            self._api.apply(
                path_of("", "v1", "secrets", namespace, names.secret), build.agent_secret(names, self._key)
            ),
        )

    async def _create_pod(self, observed: Observed, kind: Kind, action: CreatePod) -> None:
        s, names = situation(observed, kind), self._names(observed)
        assert s is not None
        manifest = build.pod(names, s.spec, s.resolved, action.slot, action.excluded_nodes)
        try:
            created = await self._api.create(path_of("", "v1", "pods", names.namespace), manifest)
        except ApiError as error:
            if error.status == 409 and error.reason == "AlreadyExists":
                log.info("pod %s/%s exists already", names.namespace, names.pod(action.slot))
                return
            refused = JobEvent("Warning", "PodNotCreated", f"{names.pod(action.slot)}: {error.message}")
            await self._events.record(observed.job, refused)
            raise
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
