"""One operator process: `python -m trireme_operator`, in the image and outside a cluster alike."""

import asyncio
import logging
import signal
from collections.abc import Iterable, Sequence

from prometheus_client.metrics_core import Metric as Family

from trireme.resources import GROUP, INFERENCE_SERVICE, VERSION, all_kinds, job_kinds
from trireme_operator import server
from trireme_operator.agents import AgentClient
from trireme_operator.apply.api import Api, ApiError, JsonObject, load_configuration, path_of
from trireme_operator.apply.events import EventRecorder
from trireme_operator.apply.executor import Executor
from trireme_operator.collectors import FleetCollector, OwnCollector
from trireme_operator.config import OperatorConfig
from trireme_operator.decide import Kind, Policy
from trireme_operator.jobs import JobController
from trireme_operator.leader import Leader
from trireme_operator.metrics import INSTRUMENTS
from trireme_operator.observe import watches
from trireme_operator.observe.cache import Cache
from trireme_operator.observe.poller import Poller
from trireme_operator.observe.queue import JobKey, WorkQueue
from trireme_operator.observe.relist import Relister
from trireme_operator.observe.world import World
from trireme_operator.reconcile import Reconciler
from trireme_operator.selfcheck import SelfCheck
from trireme_operator.services.parts import ServiceParts

log = logging.getLogger("trireme_operator")


class Operator:
    """All parts of one process, wired up."""

    def __init__(self, config: OperatorConfig, api: Api, keys: Sequence[bytes]) -> None:
        self._config = config
        self._api = api
        self._kinds: dict[str, Kind] = {info.kind: info for info in job_kinds()}
        self._queue = WorkQueue()
        self._agents = AgentClient(keys, config.poll_timeout_seconds, config.poll_concurrency)
        policy = Policy(
            default_image=config.trainer_image,
            pod_defaults=config.pod_defaults,
            exclude_after_failures=config.exclude_after_failures,
        )
        self._world = World(self._kinds, self._agents, policy)
        self._leader = Leader(
            api,
            config.lease_namespace,
            config.lease_name,
            config.identity,
            lease_seconds=config.lease_seconds,
            renew_deadline_seconds=config.renew_deadline_seconds,
            retry_seconds=config.retry_seconds,
            on_start=self._start_leading,
            on_stop=self._stop_leading,
        )
        leading = self._leader.leading
        self._poller = Poller(self._world, self._agents, self._queue, leading, config.poll_seconds)
        executor = Executor(
            api,
            self._agents,
            EventRecorder(api, config.identity),
            keys,
            leading,
            self._saw_job,
            self._saw_pod,
            self._world.obstacles,
        )
        jobs = JobController(self._world, executor)
        self._services = ServiceParts(config, api, self._world, self._queue, leading)
        self._reconciler = Reconciler(
            {**dict.fromkeys(self._kinds, jobs), INFERENCE_SERVICE.kind: self._services.controller},
            self._queue,
            leading=leading,
            synced=self._synced,
            stalled=self._poller.stalled,
        )
        self._relist = Relister(api, config.namespaces)
        self._watching = watches.Watching(
            self._handlers, self._may_watch, config.namespaces, config.kubeconfig, config.service_account
        )
        self._check = SelfCheck(
            api,
            config.namespaces,
            config.lease_namespace,
            self._watching.permissions_changed,
            may_lack_nodes=config.may_lack_nodes,
        )
        api.on_forbidden = self._check.wake
        self._fleet = FleetCollector(self._world, self._services.world, leading)
        self._own = OwnCollector(self._queue, self._check, lambda: not self._problem())

    def _synced(self, kind: str) -> bool:
        """Whether all that matters to objects of a kind was listed once."""
        return self._world.synced and (kind in self._kinds or self._services.world.synced)

    def _problem(self) -> str:
        """Why this replica does not do all that it should; "" when it does."""
        if not self._world.synced or not self._services.world.settled:
            unlisted = "not everything was listed yet"
            return f"{unlisted}; {wrong}" if (wrong := self._check.problem()) else unlisted
        return self._check.problem()

    def _metrics(self) -> Iterable[Family]:
        return [*INSTRUMENTS.registry.collect(), *self._fleet.collect(), *self._own.collect()]

    def _keys(self) -> list[JobKey]:
        return [*self._world.job_keys(), *self._services.world.service_keys()]

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set. Raises what ended a part that must not end."""
        await self._agents.open()
        runner, port = await server.serve(
            self._config.http_host, self._config.http_port, self._metrics, self._leader.problem, self._problem
        )
        log.info("metrics and probes on port %d", port)
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._wait_for_kinds(stop)
            await self._look_at_nodes(stop)
            parts = {
                "watches": self._watching.run(),
                "check": self._check.run(),
                "resync": self._resync(),
                "leader": self._leader.run(),
                "poller": self._poller.run(),
                "replicas": self._services.poller.run(),
                "reconciler": self._reconciler.run(self._config.workers),
            }
            tasks = [asyncio.create_task(part, name=name) for name, part in parts.items()]
            stopping = asyncio.create_task(stop.wait(), name="stop")
            done, _ = await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not stop.is_set():
                for task in done:
                    raise RuntimeError(f"part {task.get_name()} of the operator ended") from task.exception()
        finally:
            stop.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await runner.cleanup()
            await self._agents.close()

    def _start_leading(self) -> None:
        """What agents said before is old; every job and service is looked at."""
        self._agents.forget_all()
        self._world.begin_leading()
        for key in self._keys():
            self._queue.add(key)

    def _stop_leading(self) -> None:
        """What was known of agents grows old from now on."""
        self._agents.forget_all()

    async def _wait_for_kinds(self, stop: asyncio.Event) -> None:
        """Watches can only be opened once the CRDs are served."""
        wanted = {kind.plural for kind in all_kinds()}
        while not stop.is_set():
            try:
                served = await self._api.get(f"/apis/{GROUP}/{VERSION}")
                missing = wanted - {r["name"] for r in served.get("resources") or []}
                if not missing:
                    return
                log.warning("waiting for CRDs: %s", ", ".join(sorted(missing)))
            except ApiError as error:
                log.warning("waiting for the CRDs of %s: %s", GROUP, error)
            await asyncio.sleep(1.0)

    async def _look_at_nodes(self, stop: asyncio.Event) -> None:
        """Without access to nodes (a namespaced installation), agents and pods alone decide."""
        while not stop.is_set():
            try:
                await self._api.get(path_of("", "v1", "nodes"), query=(("limit", "1"),))
                return
            except ApiError as error:
                if error.status == 403:
                    log.warning(
                        "nodes cannot be seen, so nobody checks for room before pods are created, and a lost node is "
                        "known by its silent agents and its pods' Ready conditions alone: %s",
                        error.message,
                    )
                    self._world.nodes = None
                    return
                log.warning("asking for nodes: %s", error)
            await asyncio.sleep(1.0)

    def _may_watch(self, resource: watches.Resource) -> bool:
        group, _, plural = resource
        return self._check.may(group, plural, "list", "watch")

    def _handlers(self) -> dict[watches.Resource, watches.OnEvent]:
        handlers = {
            watches.job_resource(kind.plural): watches.feed(self._world.jobs[name], self._job_changed)
            for name, kind in self._kinds.items()
        }
        handlers |= self._services.handlers()
        handlers[("", "v1", "pods")] = watches.feed(self._world.pods, self._pod_changed)
        if self._world.nodes is not None:
            handlers[("", "v1", "nodes")] = watches.feed(self._world.nodes, self._node_changed)
        return handlers

    def _job_changed(self, raw: JsonObject) -> None:
        metadata = raw["metadata"]
        self._queue.add(JobKey(raw["kind"], metadata.get("namespace", ""), metadata["name"]))

    def _pod_changed(self, raw: JsonObject) -> None:
        key = self._world.job_of_pod(raw) or self._services.world.key_of(raw)
        if key is not None:
            self._queue.add(key)

    def _node_changed(self, raw: JsonObject) -> None:
        for key in {*self._world.on_node(raw["metadata"]["name"]), *self._world.waiting()}:
            self._queue.add(key)

    def _saw_job(self, raw: JsonObject) -> None:
        self._world.jobs[raw["kind"]].handle("MODIFIED", raw)

    def _saw_pod(self, event: str, raw: JsonObject) -> None:
        self._world.pods.handle(event, raw)
        self._pod_changed(raw)

    async def _resync(self) -> None:
        """List everything, then and again: a missed event costs at most this long."""
        known: list[JobKey] = []
        while True:
            try:
                for kind in self._kinds.values():
                    await self._relist(self._world.jobs[kind.kind], GROUP, VERSION, kind.plural, kind=kind.kind)
                await self._relist(self._world.pods, "", "v1", "pods")
                await self._relist_nodes()
                await self._services.relist(self._relist)
                self._world.forget_gone()
                present = self._keys()
                # Also those whose deletion was missed: a pass over what is gone forgets its failures.
                for key in {*present, *known}:
                    self._queue.add(key)
                known = present
                await asyncio.sleep(self._config.resync_seconds)
            except ApiError as error:
                log.warning("resync: %s", error)
                await asyncio.sleep(2.0)

    async def _relist_nodes(self) -> None:
        """Nodes come into sight when the permission to see them does, and stay as they were known when it goes."""
        nodes = self._world.nodes
        if nodes is None:
            if not self._check.may("", "nodes", "list", "watch") or not self._check.looked:
                return
            nodes = Cache()
        await self._relist(nodes, "", "v1", "nodes", namespaced=False)
        if nodes.synced and self._world.nodes is None:
            log.info("nodes can be seen now")
            self._world.nodes = nodes
            self._watching.permissions_changed()


async def run(config: OperatorConfig) -> None:
    """Run one operator until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    keys = config.read_keys()
    api = Api(await load_configuration(config.kubeconfig, config.service_account))
    try:
        await Operator(config, api, keys).run(stop)
    finally:
        await api.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    config = OperatorConfig.parse(arguments)
    logging.basicConfig(level=config.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(run(config))
