"""Carries out decisions on services. Every write is idempotent, has a deterministic name or a precondition."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from trireme.checkpoints import digest_bytes
from trireme.resources import GROUP, INFERENCE_SERVICE, VERSION
from trireme_operator.apply.api import Api, ApiError, JsonObject, path_of
from trireme_operator.apply.events import EventRecorder
from trireme_operator.apply.executor import NAME_TAKEN, NotLeading, Stale, refused_by_validation
from trireme_operator.build.names import controlled_by
from trireme_operator.decide.model import JobEvent, Obstacle
from trireme_operator.metrics import INSTRUMENTS
from trireme_operator.services import build
from trireme_operator.services.decide import admit, refused_by_server
from trireme_operator.services.model import (
    CreateRevision,
    DeleteBudget,
    DeleteRevision,
    Direct,
    EnsureAdapters,
    EnsureBudget,
    EnsureEndpoint,
    MoveBudget,
    ObservedService,
    ScaleRevision,
    ServiceAction,
    ServiceDecision,
)

log = logging.getLogger(__name__)

BUDGETS = "poddisruptionbudgets"
REPEAT_SECONDS = 30.0
"""The adapters' ConfigMap is not watched: it is written again after this long even if nothing changed."""
CREATIONS = (EnsureAdapters, EnsureEndpoint, CreateRevision, EnsureBudget)
WATCHED_GROUPS = ("apps", "policy")


class ServiceExecutor:
    """Carries out one decision at a time per service."""

    def __init__(
        self,
        api: Api,
        events: EventRecorder,
        leading: Callable[[], bool],
        on_object: Callable[[str, JsonObject], None],
        obstacles: dict[str, Obstacle],
    ) -> None:
        self._api = api
        self._events = events
        self._leading = leading
        self._on_object = on_object  # told the plural and the object after each write
        self._obstacles = obstacles
        self._written: dict[str, tuple[str, float]] = {}  # by UID of the service: the adapters, and when

    async def execute(self, observed: ObservedService, raw: JsonObject, decision: ServiceDecision) -> None:
        """Write the status, or do the actions. Raises NotLeading, Stale or ApiError."""
        if decision.status is not None:
            decision = await self._try_pod(observed, decision)
            await self._write_status(observed, raw, decision)
        for action in decision.actions:
            self._check()
            try:
                await self._one(observed, action)
            except ApiError as error:
                if error.status in (404, 409) and not isinstance(action, CREATIONS):
                    raise Stale(f"{type(action).__name__} of {observed.service.name}: {error}") from error
                await self._note_obstacle(observed, action, error)
                raise
            INSTRUMENTS.actions.labels(type(action).__name__).inc()
        if decision.actions:
            self._obstacles.pop(observed.service.uid, None)
        for event in decision.events:
            await self._events.record(observed.service, event)

    def forget_except(self, uids: set[str]) -> None:
        """Drop what is remembered of services that are gone."""
        self._written = {uid: written for uid, written in self._written.items() if uid in uids}

    def _check(self) -> None:
        if not self._leading():
            raise NotLeading

    async def _try_pod(self, observed: ObservedService, decision: ServiceDecision) -> ServiceDecision:
        """`decision`, or a refusal when the API server calls the pods of a new revision invalid."""
        assert decision.status is not None
        target, old = decision.status.target, observed.service.status.target
        if target is None or (old is not None and old.revision == target.revision):
            return decision
        manifest = build.pod(observed.service, admit(observed), target)
        try:
            await self._api.create(self._path("", "pods", observed), manifest, dry_run=True)
        except ApiError as error:
            if refused_by_validation(error):
                return refused_by_server(observed, error.message)
        return decision

    async def _write_status(self, observed: ObservedService, raw: JsonObject, decision: ServiceDecision) -> None:
        self._check()
        assert decision.status is not None
        service = observed.service
        if decision.status == service.status:
            return
        metadata = {k: v for k, v in raw["metadata"].items() if k != "managedFields"}
        status = decision.status.model_dump(mode="json", by_alias=True, exclude_none=True)
        path = path_of(GROUP, VERSION, INFERENCE_SERVICE.plural, service.namespace, service.name, "status")
        try:
            written = await self._api.replace(path, {**raw, "metadata": metadata, "status": status})
        except ApiError as error:
            if error.status in (404, 409):
                raise Stale(f"status of {service.namespace}/{service.name}: {error}") from error
            raise
        self._on_object(INFERENCE_SERVICE.plural, written)

    async def _one(self, observed: ObservedService, action: ServiceAction) -> None:
        handlers: dict[type[Any], Callable[[ObservedService, Any], Awaitable[None]]] = {
            EnsureAdapters: self._ensure_adapters,
            EnsureEndpoint: self._ensure_endpoint,
            Direct: self._direct,
            CreateRevision: self._create_revision,
            ScaleRevision: self._scale,
            DeleteRevision: self._delete,
            EnsureBudget: self._ensure_budget,
            MoveBudget: self._move_budget,
            DeleteBudget: self._delete_budget,
        }
        await handlers[type(action)](observed, action)

    def _path(self, group: str, plural: str, observed: ObservedService, *more: str) -> str:
        return path_of(group, "v1", plural, observed.service.namespace, *more)

    async def _ensure_adapters(self, observed: ObservedService, action: EnsureAdapters) -> None:
        manifest = build.adapters(observed.service, action.adapters)
        uid, content = observed.service.uid, digest_bytes(manifest["data"]["adapters.json"].encode())
        known, at = self._written.get(uid, ("", 0.0))
        if known == content and time.monotonic() - at < REPEAT_SECONDS:
            return
        found = await self._ensure(observed, "", "configmaps", manifest)
        if found.get("data") != manifest["data"]:
            path = self._path("", "configmaps", observed, manifest["metadata"]["name"])
            await self._api.patch(path, {"data": manifest["data"]}, found["metadata"]["resourceVersion"])
        self._written[uid] = (content, time.monotonic())

    async def _ensure_endpoint(self, observed: ObservedService, action: EnsureEndpoint) -> None:
        port = admit(observed).port
        manifest = build.endpoint(observed.service, action.revision, port)
        self._on_object("services", await self._ensure(observed, "", "services", manifest))

    async def _create_revision(self, observed: ObservedService, action: CreateRevision) -> None:
        manifest = build.deployment(observed.service, admit(observed), action.target)
        self._on_object("deployments", await self._ensure(observed, "apps", "deployments", manifest))

    async def _ensure(self, observed: ObservedService, group: str, plural: str, manifest: JsonObject) -> JsonObject:
        """Create an object, or take the one that is there when it is the service's. Raises ApiError, Stale."""
        name, path = manifest["metadata"]["name"], self._path(group, plural, observed)
        try:
            return await self._api.create(path, manifest)
        except ApiError as error:
            if not error.already_exists:
                raise
            # What is watched is listed: the operator has no other use for the verb to get one.
            watched = group in WATCHED_GROUPS
            found = await self._list_one(path, name) if watched else await self._get(f"{path}/{name}")
            if found is None:
                raise Stale(f"{plural} {name} is gone again") from error
            if not controlled_by(found, observed.service.uid):
                message = f"{manifest['kind']} {name} exists and belongs to another owner; waiting until it is gone"
                raise ApiError(409, NAME_TAKEN, message) from error
            return found

    async def _list_one(self, path: str, name: str) -> JsonObject | None:
        found = await self._api.list_all(path, query=(("fieldSelector", f"metadata.name={name}"),))
        return found[0] if found else None

    async def _get(self, path: str) -> JsonObject | None:
        try:
            return await self._api.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def _direct(self, observed: ObservedService, action: Direct) -> None:
        service = observed.service
        spec = build.leading(service.uid, action.revision, action.port)
        log.info("service %s/%s leads to revision %s", service.namespace, service.name, action.revision)
        path = self._path("", "services", observed, service.name)
        self._on_object("services", await self._api.patch(path, {"spec": spec}, action.resource_version))

    async def _scale(self, observed: ObservedService, action: ScaleRevision) -> None:
        path = self._path("apps", "deployments", observed, action.name)
        body = {"spec": {"replicas": action.replicas}}
        self._on_object("deployments", await self._api.patch(path, body, action.resource_version))

    async def _delete(self, observed: ObservedService, action: DeleteRevision) -> None:
        log.info("deleting deployment %s/%s", observed.service.namespace, action.name)
        path = self._path("apps", "deployments", observed, action.name)
        await self._api.delete(path, uid=action.uid, resource_version=action.resource_version)

    async def _ensure_budget(self, observed: ObservedService, action: EnsureBudget) -> None:
        manifest = build.budget(observed.service, action.revision)
        self._on_object(BUDGETS, await self._ensure(observed, "policy", BUDGETS, manifest))

    async def _move_budget(self, observed: ObservedService, action: MoveBudget) -> None:
        path = self._path("policy", BUDGETS, observed, action.name)
        body = {"spec": build.counting(observed.service.uid, action.revision)}
        self._on_object(BUDGETS, await self._api.patch(path, body, action.resource_version))

    async def _delete_budget(self, observed: ObservedService, action: DeleteBudget) -> None:
        await self._api.delete(self._path("policy", BUDGETS, observed, action.name), uid=action.uid)

    async def _note_obstacle(self, observed: ObservedService, action: ServiceAction, error: ApiError) -> None:
        """Have the next pass's conditions tell why nothing is created; an outage of the API server is no reason."""
        if error.status == 0 or not isinstance(action, CREATIONS):
            return
        reason = error.reason if error.reason == NAME_TAKEN else "NotCreated"
        self._obstacles[observed.service.uid] = Obstacle(reason, error.message)
        await self._events.record(observed.service, JobEvent("Warning", reason, error.message))
