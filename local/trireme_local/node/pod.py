"""One pod on the node, from admission to its last status."""

from __future__ import annotations

import asyncio
import copy
import logging
import shutil
import time
from pathlib import Path

from trireme_local.events import now_text
from trireme_local.kube import (
    NETWORK_ERRORS,
    SERVICEACCOUNTS,
    ApiException,
    JsonObject,
)
from trireme_local.node.container import Container
from trireme_local.node.context import AddressesExhausted, NodeContext, pause
from trireme_local.node.environment import PodFacts
from trireme_local.node.launch import Sandbox
from trireme_local.node.logs import LogSource, log_directory
from trireme_local.node.status import (
    ContainerRecord,
    conditions_of,
    phase_of,
    should_restart,
    terminated,
    waiting,
    with_times,
)
from trireme_local.node.status_writer import StatusWriter
from trireme_local.node.volumes import PUBLISHED, VolumeBuilder, VolumeError

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
# An exit that nobody saw, as containerd reports it after a reboot.
UNKNOWN_EXIT_CODE = 255


class PodWorker:
    """Runs one pod; lives until the pod's API object is gone and its processes are."""

    def __init__(self, node: NodeContext, pod: JsonObject) -> None:
        self.node = node
        self.pod = pod
        self.ended = False
        self.directory = node.directory / "pods" / self.uid
        self.rejected: tuple[str, str] | None = None
        self._address = ""
        self._init = self._records("initContainers", "initContainerStatuses")
        self._main = self._records("containers", "containerStatuses")
        self._initialized = False
        self._terminal_reason: tuple[str, str] | None = None
        self._start_time = (pod.get("status") or {}).get("startTime") or now_text()
        self._stop = asyncio.Event()
        self._grace_seconds = 30.0
        self._conditions: list[JsonObject] = list((pod.get("status") or {}).get("conditions") or [])
        self._gone = False
        self._writer = StatusWriter(node.client, pod, self.status)
        self.containers: dict[str, Container] = {}

    @property
    def uid(self) -> str:
        """The pod's uid."""
        return str(self.pod["metadata"]["uid"])

    @property
    def namespace(self) -> str:
        """The pod's namespace."""
        return str(self.pod["metadata"]["namespace"])

    @property
    def name(self) -> str:
        """The pod's name."""
        return str(self.pod["metadata"]["name"])

    def _records(self, field: str, status_field: str) -> dict[str, ContainerRecord]:
        """Records of the containers; one that the API reports as run by a past life of this node has ended."""
        known = {item["name"]: item for item in (self.pod.get("status") or {}).get(status_field) or []}
        records = {}
        for spec in self.pod["spec"].get(field) or []:
            name = spec["name"]
            if name not in known:
                later = field == "containers" and self.pod["spec"].get("initContainers")
                reason = "PodInitializing" if later or field == "initContainers" else "ContainerCreating"
                records[name] = ContainerRecord(name, spec["image"], waiting(reason))
                continue
            record = ContainerRecord.from_status(known[name])
            if running := record.state.get("running"):
                message = "the node restarted while the container was running"
                record.state = terminated(
                    UNKNOWN_EXIT_CODE, "Unknown", running.get("startedAt"), message, record.container_id
                )
            elif "waiting" in record.state and record.last_state:
                record.state, record.last_state = record.last_state, {}
            records[name] = record
        return records

    def request_stop(self, grace_seconds: float, gone: bool = False) -> None:
        """Stop the pod; a shorter grace replaces a longer one. `gone`: its API object no longer exists."""
        self._gone = self._gone or gone
        self._writer.gone = self._gone
        shorter = grace_seconds < self._grace_seconds or not self._stop.is_set()
        self._grace_seconds = grace_seconds if shorter else self._grace_seconds
        self._stop.set()
        if shorter:
            for container in self.containers.values():
                if container.process is not None and container.sandbox.stopping.is_set():
                    self._hurry = asyncio.create_task(container.stop(self._grace_seconds))

    def update(self, pod: JsonObject) -> None:
        """Take over the newest API object."""
        gates = self._gates()
        self.pod = pod
        self._writer.compare(pod)
        if gates != self._gates():
            # Readiness gates are others' conditions, and decide about Ready.
            self._changed()

    async def run(self) -> None:
        """The pod's whole life on this node."""
        writer = asyncio.create_task(self._writer.run())
        try:
            await self._live()
            await self._finish()
        finally:
            writer.cancel()
            self.ended = True

    async def _live(self) -> None:
        if (self.pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            await self._stop.wait()
            return
        if self.rejected:
            self._changed()
            await self._stop.wait()
            return
        if not await self._take_address():
            return
        scratch = self.node.scratch / self._address
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            await self._run_until_done(scratch)
        finally:
            self.node.addresses.give_back(self._address)
            for directory in self.node.temporary:
                shutil.rmtree(directory / self._address, ignore_errors=True)
        self._changed()
        await self._stop.wait()

    async def _take_address(self) -> bool:
        """Wait for a free pod address; False when the pod is stopped first."""
        while not self._stop.is_set():
            try:
                self._address = self.node.addresses.take()
                return True
            except AddressesExhausted as error:
                self.node.recorder.record(self.pod, "Warning", "FailedCreatePodSandBox", str(error))
            await pause(self._stop, self.node.timings.config_retry_seconds)
        return False

    async def _run_until_done(self, scratch: Path) -> None:
        """Run the containers until all have ended, the deadline passes, or the pod is told to stop."""
        facts = PodFacts(self.pod, self._address, self.node.host_ip, self.node.capacity)
        sandbox = Sandbox(
            node=self.node,
            facts=facts,
            directory=self.directory,
            scratch=scratch,
            volumes={},
            namespaces=self.node.namespaces_for(self.pod),
            changed=self._changed,
            event=lambda kind, reason, message: self.node.recorder.record(self.pod, kind, reason, message),
        )
        self._changed()
        work = asyncio.create_task(self._work(sandbox))
        stop = asyncio.create_task(self._stop.wait())
        deadline = self.pod["spec"].get("activeDeadlineSeconds")
        done, _ = await asyncio.wait({work, stop}, timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            self._terminal_reason = (
                "DeadlineExceeded",
                "Pod was active on the node longer than the specified deadline",
            )
            self._grace_seconds = float(self.pod["spec"].get("terminationGracePeriodSeconds", 30))
        stop.cancel()
        if not work.done():
            await self._stop_containers(sandbox, work)
        await work

    async def _stop_containers(self, sandbox: Sandbox, work: asyncio.Task[None]) -> None:
        """Stop every container, again until the pod's work has ended (one may start meanwhile)."""
        sandbox.stopping.set()
        live = [item for item in self.containers.values() if item.process is not None]
        for container in live:
            sandbox.event("Normal", "Killing", f"Stopping container {container.name}")
        deadline = time.monotonic() + self._grace_seconds
        while not work.done():
            left_seconds = max(0.0, deadline - time.monotonic())
            await asyncio.gather(*(container.stop(left_seconds) for container in self.containers.values()))
            await asyncio.wait({work}, timeout=0.1)

    async def _work(self, sandbox: Sandbox) -> None:
        """Volumes, init containers one after the other, then all containers at once."""
        if not await self._set_up_volumes(sandbox):
            return
        refresh = asyncio.create_task(self._refresh_volumes(sandbox))
        sidecars: list[asyncio.Task[None]] = []
        try:
            if not await self._run_init(sandbox, sidecars):
                return
            self._initialized = True
            self._changed()
            policy = self.pod["spec"].get("restartPolicy", "Always")
            await asyncio.gather(
                *(
                    self._container(sandbox, spec, self._main).run(policy)
                    for spec in self.pod["spec"]["containers"]
                    if self._runs_again(self._main[spec["name"]], policy)
                )
            )
        finally:
            refresh.cancel()
            await self._stop_sidecars(sandbox, sidecars)

    @staticmethod
    def _runs_again(record: ContainerRecord, policy: str) -> bool:
        """False for a container that a past life of the node saw end for good."""
        ended = record.terminated
        return ended is None or should_restart(policy, ended["exitCode"])

    def _container(self, sandbox: Sandbox, spec: JsonObject, records: dict[str, ContainerRecord]) -> Container:
        container = Container(sandbox, spec, records[spec["name"]])
        self.containers[spec["name"]] = container
        return container

    async def _set_up_volumes(self, sandbox: Sandbox) -> bool:
        """Make the volumes, trying again until it works; False when the pod stops first."""
        builder = self._builder(sandbox)
        while not sandbox.stopping.is_set():
            try:
                sandbox.volumes = await builder.build()
                return True
            except VolumeError as error:
                self.node.recorder.record(self.pod, "Warning", "FailedMount", str(error))
            except (ApiException, *NETWORK_ERRORS) as error:
                log.info("pod %s/%s: volumes: %r", self.namespace, self.name, error)
                self.node.recorder.record(self.pod, "Warning", "FailedMount", f"MountVolume.SetUp failed: {error}")
            await pause(sandbox.stopping, self.node.timings.config_retry_seconds)
        return False

    def _builder(self, sandbox: Sandbox) -> VolumeBuilder:
        lookup = self.node.lookup(self.namespace)
        memory = self.node.memory / self._address if self.node.memory and sandbox.namespaces else None
        return VolumeBuilder(
            self.directory / "volumes",
            sandbox.facts,
            lookup,
            self._token,
            rewrites=sandbox.namespaces is None,
            memory=memory,
        )

    async def _refresh_volumes(self, sandbox: Sandbox) -> None:
        """Bring changed ConfigMaps, Secrets and tokens into the volumes, as the kubelet does about once a minute."""
        kinds = {kind for volume in self.pod["spec"].get("volumes") or [] for kind in volume}
        if not kinds & PUBLISHED:
            return
        while True:
            await asyncio.sleep(self.node.timings.volume_refresh_seconds)
            try:
                await self._builder(sandbox).build()
            except (VolumeError, ApiException, *NETWORK_ERRORS) as error:
                log.info("pod %s/%s: volumes not refreshed: %r", self.namespace, self.name, error)

    async def _token(self, audience: str | None, seconds: int) -> str:
        """A token of the pod's service account, bound to the pod."""
        account = self.pod["spec"].get("serviceAccountName") or "default"
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": [audience] if audience else [],
                "expirationSeconds": seconds,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": self.name, "uid": self.uid},
            },
        }
        answer = await self.node.client.create(SERVICEACCOUNTS, self.namespace, body, account, "token")
        return str(answer["status"]["token"])

    async def _run_init(self, sandbox: Sandbox, sidecars: list[asyncio.Task[None]]) -> bool:
        """Run the init containers; False when one failed for good or the pod stops."""
        policy = self.pod["spec"].get("restartPolicy", "Always")
        retry = "Never" if policy == "Never" else "OnFailure"
        for spec in self.pod["spec"].get("initContainers") or []:
            record = self._init[spec["name"]]
            if (record.terminated or {}).get("exitCode") == 0 and spec.get("restartPolicy") != "Always":
                continue
            container = self._container(sandbox, spec, self._init)
            if spec.get("restartPolicy") == "Always":
                task = asyncio.create_task(container.run("Always"))
                sidecars.append(task)
                started = asyncio.create_task(container.started.wait())
                await asyncio.wait({task, started}, return_when=asyncio.FIRST_COMPLETED)
                started.cancel()
            else:
                await container.run(retry)
                if (record.terminated or {}).get("exitCode") != 0:
                    return False
            if sandbox.stopping.is_set():
                return False
        return True

    async def _stop_sidecars(self, sandbox: Sandbox, sidecars: list[asyncio.Task[None]]) -> None:
        if not sidecars:
            return
        sandbox.stopping.set()
        grace = float(self.pod["spec"].get("terminationGracePeriodSeconds", 30))
        running = [item for item in self.containers.values() if item.process is not None]
        await asyncio.gather(*(container.stop(grace) for container in running))
        await asyncio.gather(*sidecars)

    def log_source(self, container: str) -> LogSource | None:
        """Where the container's logs lie, None when the pod has no container of that name."""
        record = self._main.get(container) or self._init.get(container)
        if record is None:
            return None
        running = self.containers.get(container)
        return LogSource(
            directory=log_directory(self.directory, container),
            record=record,
            is_running=lambda: running is not None and running.process is not None,
        )

    # -- status ---------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        self._writer.changed()

    def status(self) -> JsonObject:
        """The pod's status as it is now, without what other components own."""
        if self.rejected:
            reason, message = self.rejected
            return {"phase": "Failed", "reason": reason, "message": message, "startTime": self._start_time}
        init, main = list(self._init.values()), list(self._main.values())
        spec = self.pod["spec"]
        if self._stop.is_set() or self._terminal_reason:
            spec = {**spec, "restartPolicy": "Never"}
        phase = phase_of(spec, init, main)
        initialized = self._initialized or not init
        gates = self._gates()
        sidecars = {item["name"] for item in spec.get("initContainers") or [] if item.get("restartPolicy") == "Always"}
        fresh = conditions_of(phase, init, main, initialized, gates, sidecars)
        started = [item for item in main if "running" in item.state or item.terminated or item.last_state]
        ready_to_start = bool(self._address) and (bool(started) or bool(self.containers))
        fresh.insert(0, {"type": "PodReadyToStartContainers", "status": "True" if ready_to_start else "False"})
        fresh.append({"type": "PodScheduled", "status": "True"})
        self._conditions = with_times(fresh, self._conditions)
        status: JsonObject = {
            "phase": phase,
            "startTime": self._start_time,
            "hostIP": self.node.host_ip,
            "hostIPs": [{"ip": self.node.host_ip}],
            "conditions": self._conditions,
            "containerStatuses": [copy.deepcopy(record.to_status()) for record in main],
        }
        if init:
            status["initContainerStatuses"] = [copy.deepcopy(record.to_status()) for record in init]
        if self._address:
            status |= {"podIP": self._address, "podIPs": [{"ip": self._address}]}
        if self._terminal_reason:
            status["reason"], status["message"] = self._terminal_reason
            status["phase"] = "Failed"
        return status

    def _gates(self) -> list[bool]:
        values = {item["type"]: item["status"] for item in (self.pod.get("status") or {}).get("conditions") or []}
        gates = self.pod["spec"].get("readinessGates") or []
        return [values.get(gate["conditionType"]) == "True" for gate in gates]

    # -- end ------------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Write the last status and remove the API object, as the kubelet does once nothing runs."""
        while not self._gone:
            if await self._writer.write() and await self._writer.delete_object():
                break
            await asyncio.sleep(RETRY_SECONDS)
        shutil.rmtree(self.directory, ignore_errors=True)
