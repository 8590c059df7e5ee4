"""The operator's parts for services, wired up."""

from collections.abc import Awaitable, Callable

from trireme.protocol.serving import ReplicaReport
from trireme.resources import GROUP, INFERENCE_SERVICE, VERSION
from trireme_operator.apply.api import Api, JsonObject
from trireme_operator.apply.events import EventRecorder
from trireme_operator.config import OperatorConfig
from trireme_operator.observe import watches
from trireme_operator.observe.cache import Cache
from trireme_operator.observe.queue import JobKey, WorkQueue
from trireme_operator.observe.world import World
from trireme_operator.services import names
from trireme_operator.services.apply import ServiceExecutor
from trireme_operator.services.controller import ServiceController
from trireme_operator.services.model import ServicePolicy
from trireme_operator.services.observe import KIND, ReplicaPoller, ServiceWorld


class ServiceParts:
    """What one process needs to look after services."""

    def __init__(
        self, config: OperatorConfig, api: Api, world: World, queue: WorkQueue, leading: Callable[[], bool]
    ) -> None:
        self._queue = queue
        reports: dict[str, ReplicaReport] = {}
        policy = ServicePolicy(default_image=config.serving_image, pod_defaults=config.pod_defaults)
        self.world = ServiceWorld(world, reports, policy)
        self.poller = ReplicaPoller(
            self.world,
            reports,
            queue,
            leading,
            interval_seconds=config.poll_seconds,
            timeout_seconds=config.poll_timeout_seconds,
            concurrency=config.poll_concurrency,
        )
        events = EventRecorder(api, config.identity)
        self._executor = ServiceExecutor(api, events, leading, self._saw, self.world.obstacles)
        self.controller = ServiceController(self.world, self._executor)
        self._caches: dict[str, Cache] = {
            INFERENCE_SERVICE.plural: self.world.services,
            "deployments": self.world.deployments,
            "services": self.world.endpoints,
            "poddisruptionbudgets": self.world.budgets,
        }

    def handlers(self) -> dict[tuple[str, str, str], watches.OnEvent]:
        """What is to be watched beside what jobs need."""
        services = watches.job_resource(INFERENCE_SERVICE.plural)
        return {
            services: watches.feed(self.world.services, self._changed),
            ("apps", "v1", "deployments"): _ours(watches.feed(self.world.deployments, self._owned_changed)),
            ("", "v1", "services"): _ours(watches.feed(self.world.endpoints, self._owned_changed)),
            ("policy", "v1", "poddisruptionbudgets"): _ours(watches.feed(self.world.budgets, self._owned_changed)),
        }

    async def relist(self, relist: Callable[..., Awaitable[None]]) -> None:
        """List everything by the operator's own way to do so."""
        await relist(self.world.services, GROUP, VERSION, INFERENCE_SERVICE.plural, kind=KIND)
        await relist(self.world.deployments, "apps", "v1", "deployments", labelled=names.LABEL_UID)
        await relist(self.world.endpoints, "", "v1", "services", labelled=names.LABEL_UID)
        await relist(self.world.budgets, "policy", "v1", "poddisruptionbudgets", labelled=names.LABEL_UID)
        present = {raw["metadata"]["uid"] for raw in self.world.services}
        self._executor.forget_except(present)
        for gone in [uid for uid in self.world.obstacles if uid not in present]:
            del self.world.obstacles[gone]

    def _changed(self, raw: JsonObject) -> None:
        self._queue.add(JobKey(KIND, raw["metadata"].get("namespace", ""), raw["metadata"]["name"]))

    def _owned_changed(self, raw: JsonObject) -> None:
        key = self.world.key_of(raw)
        if key is not None:
            self._queue.add(key)

    def _saw(self, plural: str, raw: JsonObject) -> None:
        self._caches[plural].handle("MODIFIED", raw)
        self._queue.add(JobKey(KIND, raw["metadata"].get("namespace", ""), _service_name(plural, raw)))


def _service_name(plural: str, raw: JsonObject) -> str:
    metadata = raw["metadata"]
    own = plural == INFERENCE_SERVICE.plural
    return str(metadata["name"] if own else metadata["labels"][names.LABEL_NAME])


def _ours(handler: watches.OnEvent) -> watches.OnEvent:
    """Only objects of services are kept: a cluster has many others."""

    def handle(event: str | None, raw: JsonObject) -> None:
        if names.LABEL_UID in (raw["metadata"].get("labels") or {}):
            handler(event, raw)

    return handle
