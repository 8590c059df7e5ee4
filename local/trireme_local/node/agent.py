"""The node agent: hears of the pods bound to this node and gives each one a worker."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from trireme_local.events import EventRecorder
from trireme_local.informer import Informer, key_of
from trireme_local.kube import PODS, SERVICES, JsonObject, KubeClient
from trireme_local.node.container import Container
from trireme_local.node.context import NodeContext, PodAddresses, Timings
from trireme_local.node.images import ImageTable
from trireme_local.node.kubelet_server import KubeletServer, serving_certificate
from trireme_local.node.logs import LogSource
from trireme_local.node.namespaces import MountNamespaces, bytecode_directory
from trireme_local.node.pod import PodWorker
from trireme_local.node.processes import (
    ProcessTable,
    become_subreaper,
    reap_orphans,
)
from trireme_local.node.registration import Registration
from trireme_local.quantities import add, amounts, lacking, pod_amounts, used_amounts
from trireme_local.sessions import marked_processes, send_all

log = logging.getLogger(__name__)

ORPHAN_POLL_ROUNDS = 10


@dataclass(frozen=True)
class NodeSettings:
    """How one node is set up."""

    name: str
    kubeconfig: Path
    directory: Path
    scratch: Path
    memory: Path | None
    addresses: PodAddresses
    marker: str
    capacity: dict[str, str]
    labels: dict[str, str] = field(default_factory=dict)
    taints: list[JsonObject] = field(default_factory=list)
    kubelet_port: int = 10250
    image_table: Path | None = None
    namespaces: MountNamespaces | None = None
    isolate_all: bool = False
    timings: Timings = field(default_factory=Timings)


class NodeAgent:
    """Runs the pods of one node until told to stop."""

    def __init__(self, settings: NodeSettings, client: KubeClient) -> None:
        self._settings = settings
        self._client = client
        recorder = EventRecorder(client, "kubelet", settings.name)
        self._node = NodeContext(
            name=settings.name,
            client=client,
            recorder=recorder,
            images=ImageTable.load(settings.image_table),
            addresses=settings.addresses,
            directory=settings.directory,
            scratch=settings.scratch,
            memory=settings.memory,
            marker=settings.marker,
            capacity=settings.capacity,
            services=Informer(client, SERVICES),
            namespaces=settings.namespaces,
            isolate_all=settings.isolate_all,
            bytecode=bytecode_directory(),
            timings=settings.timings,
        )
        self._workers: dict[str, PodWorker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: list[asyncio.Task[None]] = []
        self._informer = self._new_informer()

    def _new_informer(self) -> Informer:
        informer = Informer(self._client, PODS, field_selector=f"spec.nodeName={self._settings.name}")
        informer.handlers.append(self._on_pod)
        return informer

    async def run(self, stop: asyncio.Event) -> None:
        """Register, serve, run pods; when `stop` is set kill every pod's processes and return."""
        settings = self._settings
        send_all(marked_processes(f"{settings.marker}/"), signal.SIGKILL)
        self._remove_temporary()
        become_subreaper()
        context = serving_certificate(settings.directory, settings.name, settings.addresses.node_address)
        server, port = await KubeletServer(self).start(settings.addresses.node_address, settings.kubelet_port, context)
        registration = Registration(
            self._client,
            settings.name,
            host_ip=settings.addresses.node_address,
            kubelet_port=port,
            labels=settings.labels,
            taints=settings.taints,
            capacity=settings.capacity,
            timings=settings.timings,
            runtime=f"bubblewrap://{settings.namespaces.version}" if settings.namespaces else "rewritten-paths://1",
        )
        jobs = [self._node.recorder.run(), self._poll_processes(), self._serve(registration)]
        tasks = [asyncio.create_task(job) for job in jobs]
        stopped = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait({*tasks, stopped}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopped}:
                task.result()
        finally:
            for task in [*tasks, stopped, *self._tasks]:
                task.cancel()
            await self._kill_everything()
            await server.cleanup()

    async def _serve(self, registration: Registration) -> None:
        await registration.register()
        log.info("node %s registered, pods at %s", self._settings.name, self._settings.addresses.node_address)
        node = registration.node_object
        self._node.recorder.record(node, "Normal", "Starting", "Starting the node agent.")
        self._watch()
        try:
            await registration.run(self._reconnected)
        finally:
            for task in self._watching:
                task.cancel()

    def _watch(self) -> None:
        """Follow the Services and this node's pods; the Services first, for the pods' environments."""
        self._watching = [asyncio.create_task(self._node.services.run()), asyncio.create_task(self._watch_pods())]

    async def _watch_pods(self) -> None:
        await self._node.services.synced.wait()
        await self._informer.run()

    async def _reconnected(self) -> None:
        """Start list and watch afresh: the old watch may be a connection that nobody serves any more."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await self._client.reconnect()
        self._watch()

    async def _kill_everything(self) -> None:
        for _ in range(20):
            left = marked_processes(f"{self._settings.marker}/")
            if not left:
                break
            send_all(left, signal.SIGKILL)
            await asyncio.sleep(0.05)
        self._remove_temporary()

    def _remove_temporary(self) -> None:
        for directory in self._node.temporary:
            shutil.rmtree(directory, ignore_errors=True)

    # -- pods -----------------------------------------------------------------------------------------------

    def _on_pod(self, old: JsonObject | None, new: JsonObject | None) -> None:
        pod = new or old
        assert pod is not None
        uid = pod["metadata"]["uid"]
        worker = self._workers.get(uid)
        if new is None:
            if worker is not None:
                grace = pod["metadata"].get("deletionGracePeriodSeconds")
                if grace is None:
                    grace = pod["spec"].get("terminationGracePeriodSeconds", 30)
                worker.request_stop(float(grace), gone=True)
            return
        if worker is None:
            worker = self._start_worker(pod)
        worker.update(pod)
        if pod["metadata"].get("deletionTimestamp"):
            worker.request_stop(float(pod["metadata"].get("deletionGracePeriodSeconds") or 0))

    def _start_worker(self, pod: JsonObject) -> PodWorker:
        worker = PodWorker(self._node, pod)
        worker.rejected = self._refusal(pod)
        self._workers[worker.uid] = worker
        self._spawn(self._run_worker(worker))
        return worker

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_worker(self, worker: PodWorker) -> None:
        try:
            await worker.run()
        except Exception:
            log.exception("pod %s/%s: worker failed", worker.namespace, worker.name)
            raise
        finally:
            self._workers.pop(worker.uid, None)

    def _refusal(self, pod: JsonObject) -> tuple[str, str] | None:
        """(reason, message) when the pod does not fit beside those that are here and not yet run."""
        if (pod.get("status") or {}).get("startTime"):
            return None
        others = [
            worker.pod
            for worker in self._workers.values()
            if not worker.rejected and worker.status().get("phase") not in ("Succeeded", "Failed")
        ]
        used = used_amounts(others)
        capacity = amounts(self._settings.capacity)
        free = add(capacity, {name: -value for name, value in used.items()})
        need = {**pod_amounts(pod), "pods": 1000}
        for name in lacking(need, free):
            message = (
                f"Node didn't have enough resource: {name}, requested: {need[name]}m, "
                f"used: {used.get(name, 0)}m, capacity: {capacity.get(name, 0)}m"
            )
            self._node.recorder.record(pod, "Warning", f"OutOf{name}", message)
            return f"OutOf{name}", message
        return None

    # -- what the kubelet endpoint asks -----------------------------------------------------------------------

    def pod_objects(self) -> list[JsonObject]:
        """The pods on this node with their current status."""
        return [{**worker.pod, "status": worker.status()} for worker in self._workers.values()]

    def log_source(self, namespace: str, pod: str, container: str) -> LogSource | None:
        """The logs of a container of the newest pod of that name."""
        for worker in reversed(self._workers.values()):
            if key_of(worker.pod) == (namespace, pod):
                return worker.log_source(container)
        return None

    # -- processes ------------------------------------------------------------------------------------------

    async def _poll_processes(self) -> None:
        """Enforce memory limits, and collect orphans that have exited."""
        rounds = 0
        while True:
            await asyncio.sleep(self._settings.timings.memory_poll_seconds)
            rounds += 1
            running = [
                container
                for worker in self._workers.values()
                for container in worker.containers.values()
                if container.process is not None
            ]
            try:
                if any(container.memory_limit_bytes is not None for container in running):
                    await self._enforce_memory(running)
                if rounds % ORPHAN_POLL_ROUNDS == 0:
                    reap_orphans(item.process.pid for item in running if item.process is not None)
            except psutil.Error as error:
                log.warning("processes could not be read, trying again: %r", error)

    async def _enforce_memory(self, running: list[Container]) -> None:
        table = await asyncio.to_thread(ProcessTable.scan)
        for container in running:
            limit, process = container.memory_limit_bytes, container.process
            if limit is None or process is None:
                continue
            used_bytes = table.memory_bytes(container.marker)
            if used_bytes > limit:
                log.info("%s: %d bytes over its limit of %d: killed", container.marker, used_bytes, limit)
                process.oom_killed = True
                await process.kill_remains()
