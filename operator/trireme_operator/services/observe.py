"""What the operator sees of services: caches fed by watches and lists, and the replicas' own reports."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import aiohttp
from pydantic import ValidationError

from trireme.protocol import PROTOCOL_VERSION, compatible
from trireme.protocol.serving import STATUS_PORT, ReplicaReport
from trireme.resources import INFERENCE_SERVICE, SpecError
from trireme.resources.inference import references
from trireme.resources.inference_status import ServiceStatus
from trireme_operator.build.names import controlled_by
from trireme_operator.decide.model import Obstacle
from trireme_operator.observe.cache import Cache, JsonObject
from trireme_operator.observe.queue import JobKey, WorkQueue
from trireme_operator.observe.views import UnreadableStatus
from trireme_operator.observe.world import World
from trireme_operator.services import names
from trireme_operator.services.model import (
    BudgetView,
    DeploymentView,
    EndpointView,
    ObservedService,
    ServicePolicy,
    ServiceView,
    ServingPod,
)

log = logging.getLogger(__name__)

KIND = INFERENCE_SERVICE.kind
SILENT_SECONDS = 10.0
"""After which a replica that accepts connections and answers nothing has no report any more."""
GATHER_SECONDS = 0.05
MAX_REPORT_BYTES = 1 << 20


def service_view(raw: JsonObject) -> ServiceView:
    """A service. Raises UnreadableStatus."""
    metadata = raw["metadata"]
    try:
        status = ServiceStatus.model_validate(raw.get("status") or {})
    except ValidationError as error:
        raise UnreadableStatus(f"{metadata.get('namespace')}/{metadata['name']}: {error}") from error
    return ServiceView(
        kind=KIND,
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        generation=metadata.get("generation", 0),
        deleting=bool(metadata.get("deletionTimestamp")),
        spec=raw.get("spec") or {},
        status=status,
    )


def pod_view(raw: JsonObject) -> ServingPod:
    """A pod of a service."""
    metadata, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    scheduled = conditions.get("PodScheduled", {})
    container: JsonObject = next(
        (c for c in status.get("containerStatuses") or [] if c.get("name") == names.CONTAINER), {}
    )
    waiting = (container.get("state") or {}).get("waiting") or {}
    ended = (container.get("state") or {}).get("terminated") or (container.get("lastState") or {}).get("terminated")
    return ServingPod(
        name=metadata["name"],
        uid=metadata["uid"],
        revision=(metadata.get("labels") or {}).get(names.LABEL_REVISION, ""),
        node=spec.get("nodeName"),
        address=status.get("podIP"),
        ready=conditions.get("Ready", {}).get("status") == "True",
        deleting=bool(metadata.get("deletionTimestamp")),
        finished=status.get("phase") in ("Succeeded", "Failed"),
        restarts=int(container.get("restartCount", 0)),
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        unschedulable=scheduled.get("message", "") if scheduled.get("status") == "False" else "",
        ended=_ended(ended) if ended else "",
    )


def _ended(state: dict[str, Any]) -> str:
    text = f"exit code {state.get('exitCode')}, {state.get('reason', '')}"
    message = str(state.get("message") or "").strip()
    return f"{text}: {message[-500:]}" if message else text


def deployment_view(raw: JsonObject) -> DeploymentView:
    """The Deployment of a revision."""
    metadata = raw["metadata"]
    conditions = (raw.get("status") or {}).get("conditions") or []
    failing = [c for c in conditions if c["type"] == "ReplicaFailure" and c["status"] == "True"]
    return DeploymentView(
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        revision=(metadata.get("labels") or {}).get(names.LABEL_REVISION, ""),
        replicas=int((raw.get("spec") or {}).get("replicas", 1)),
        deleting=bool(metadata.get("deletionTimestamp")),
        problem=str(failing[0].get("message", "")) if failing else "",
    )


def endpoint_view(raw: JsonObject) -> EndpointView:
    """The Service."""
    spec = raw.get("spec") or {}
    return EndpointView(
        resource_version=raw["metadata"]["resourceVersion"],
        address=spec.get("clusterIP") or "",
        port=int((spec.get("ports") or [{"port": 0}])[0]["port"]),
        revision=(spec.get("selector") or {}).get(names.LABEL_REVISION, ""),
    )


def budget_view(raw: JsonObject) -> BudgetView:
    """The PodDisruptionBudget."""
    metadata = raw["metadata"]
    selector = (raw.get("spec") or {}).get("selector") or {}
    return BudgetView(
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        revision=(selector.get("matchLabels") or {}).get(names.LABEL_REVISION, ""),
        deleting=bool(metadata.get("deletionTimestamp")),
    )


class ServiceWorld:
    """Caches of services and of what they own; pods and jobs are seen by the world of jobs."""

    def __init__(
        self,
        world: World,
        reports: dict[str, ReplicaReport],
        policy: ServicePolicy,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._world = world
        self._reports = reports
        self._policy = policy
        self._clock = clock
        self.services = Cache()
        self.deployments = Cache(names.LABEL_UID)
        self.endpoints = Cache(names.LABEL_UID)
        self.budgets = Cache(names.LABEL_UID)
        self.obstacles: dict[str, Obstacle] = {}  # by UID of the service

    @property
    def synced(self) -> bool:
        """Whether everything was listed once."""
        return all(cache.synced for cache in (self.services, self.deployments, self.endpoints, self.budgets))

    @property
    def settled(self) -> bool:
        """Whether everything was listed once that may be."""
        return all(cache.settled for cache in (self.services, self.deployments, self.endpoints, self.budgets))

    def service_keys(self) -> list[JobKey]:
        """All services."""
        return [JobKey(KIND, raw["metadata"].get("namespace", ""), raw["metadata"]["name"]) for raw in self.services]

    def key_of(self, raw: JsonObject) -> JobKey | None:
        """The service that an object belongs to by its labels."""
        name = (raw["metadata"].get("labels") or {}).get(names.LABEL_NAME)
        namespace = raw["metadata"].get("namespace", "")
        return JobKey(KIND, namespace, name) if name and self.services.get(namespace, name) else None

    def service(self, key: JobKey) -> ServiceView | None:
        """A service as it was last seen. Raises UnreadableStatus."""
        raw = self.services.get(key.namespace, key.name)
        return None if raw is None else service_view(raw)

    def pods_of(self, uid: str, namespace: str) -> list[ServingPod]:
        """The pods of a service."""
        found = [raw for raw in self._world.pods.labelled(uid) if raw["metadata"].get("namespace") == namespace]
        return [pod_view(raw) for raw in found]

    def observe(self, key: JobKey) -> tuple[ObservedService, JsonObject] | None:
        """What decide() sees of one service, and the service as it was last seen. Raises UnreadableStatus."""
        raw = self.services.get(key.namespace, key.name)
        if raw is None:
            return None
        service = service_view(raw)
        endpoint = self.endpoints.get(key.namespace, key.name)
        mine = endpoint is not None and controlled_by(endpoint, service.uid)
        budget = self.budgets.get(key.namespace, names.budget(service.name, service.uid))
        observed = ObservedService(
            now=self._clock(),
            service=service,
            pods=tuple(self.pods_of(service.uid, key.namespace)),
            reports=self._reports,
            deployments=tuple(
                deployment_view(d) for d in self.deployments.labelled(service.uid) if controlled_by(d, service.uid)
            ),
            endpoint=endpoint_view(endpoint) if mine and endpoint is not None else None,
            budget=budget_view(budget) if budget is not None and controlled_by(budget, service.uid) else None,
            upstreams=self._world.upstreams(key.namespace, self._references(service)),
            obstacle=self.obstacles.get(service.uid),
            policy=self._policy,
        )
        return observed, raw

    def _references(self, service: ServiceView) -> Any:
        try:
            return references(INFERENCE_SERVICE.parse(service.spec))
        except SpecError:
            return {}


class ReplicaPoller:
    """Asks every replica for its report about once a second. Only the leader does."""

    def __init__(
        self,
        world: ServiceWorld,
        reports: dict[str, ReplicaReport],
        queue: WorkQueue,
        leading: Callable[[], bool],
        *,
        interval_seconds: float,
        timeout_seconds: float,
        concurrency: int,
    ) -> None:
        self._world = world
        self._reports = reports
        self._queue = queue
        self._leading = leading
        self._interval = interval_seconds
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._gate = asyncio.Semaphore(concurrency)
        self._heard: dict[str, float] = {}
        self._in_flight: set[str] = set()

    async def run(self) -> None:
        """Poll for ever."""
        # Proxies of the environment are for the internet, not for pods.
        async with aiohttp.ClientSession(timeout=self._timeout, trust_env=False) as session:
            while True:
                if self._leading() and self._world.synced:
                    await self._round(session)
                await asyncio.sleep(self._interval)

    async def _round(self, session: aiohttp.ClientSession) -> None:
        tasks, present = [], set()
        for key in self._world.service_keys():
            raw = self._world.services.get(key.namespace, key.name)
            if raw is None:
                continue
            uid = raw["metadata"]["uid"]
            for pod in self._world.pods_of(uid, key.namespace):
                present.add(pod.uid)
                if pod.address and not pod.finished and pod.uid not in self._in_flight:
                    tasks.append(asyncio.ensure_future(self._one(session, key, uid, pod.uid, pod.address)))
        for known in (self._reports, self._heard):
            for gone in [uid for uid in known if uid not in present]:
                del known[gone]
        if tasks:
            await asyncio.wait(tasks, timeout=self._interval)

    async def _one(self, session: aiohttp.ClientSession, key: JobKey, service: str, pod: str, address: str) -> None:
        self._in_flight.add(pod)
        before = self._reports.get(pod)
        try:
            async with self._gate, session.get(_report_url(address)) as answer:
                answer.raise_for_status()
                report = ReplicaReport.model_validate_json(await _bounded(answer))
            if report.service_uid != service or not compatible(PROTOCOL_VERSION, report.protocol):
                raise ValueError(f"a report of {report.service_uid}, protocol {report.protocol}")
            self._reports[pod], self._heard[pod] = report, time.monotonic()
        except (TimeoutError, aiohttp.ServerTimeoutError):
            if time.monotonic() - self._heard.get(pod, 0.0) > SILENT_SECONDS:
                self._reports.pop(pod, None)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Nobody listens, or somebody else: what was there is gone.
            log.debug("replica %s at %s: %s", pod, address, error)
            self._reports.pop(pod, None)
        finally:
            self._in_flight.discard(pod)
        if self._reports.get(pod) != before:
            self._queue.add(key, GATHER_SECONDS)


async def _bounded(answer: aiohttp.ClientResponse) -> bytes:
    """The body of an answer. Raises ValueError when it is far longer than any report."""
    body = b""
    async for chunk in answer.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > MAX_REPORT_BYTES:
            raise ValueError(f"a report of more than {MAX_REPORT_BYTES} bytes")
    return body


def _report_url(address: str) -> str:
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{STATUS_PORT}/v1/report"
