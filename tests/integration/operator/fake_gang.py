"""Nodes, a kubelet and agents as plain asyncio code, so that the operator's whole loop runs in seconds.

The API server is the local one; pods are bound and their status written as a scheduler and kubelets would, and behind
each pod's address answers an agent that follows the protocol and "trains" by counting.
"""

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from trireme.protocol import (
    AgentState,
    CheckpointFact,
    CheckpointReport,
    DatasetRef,
    ModelRef,
    Phase,
    Progress,
    ProposedResume,
    Report,
    ResumePoint,
    Target,
    supersedes,
)

Json = dict[str, Any]
STEPS_PER_SECOND = 20.0
SAVE_EVERY = 10


@dataclass
class Training:
    """What the ranks of a job have done so far, over all attempts."""

    total_steps: int = 30
    step: float = 0.0
    attempt: int = 0
    commits: list[ResumePoint] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)
    paused: bool = False  # ranks run but make no step

    def start(self, attempt: int, resume: ResumePoint | None) -> None:
        if attempt > self.attempt:
            self.attempt, self.step = attempt, float(resume.step if resume else 0)

    def advance(self, seconds: float) -> None:
        if self.paused:
            return
        before = int(self.step)
        self.step = min(float(self.total_steps), self.step + seconds * STEPS_PER_SECOND)
        for step in range(before + 1, int(self.step) + 1):
            if step % SAVE_EVERY == 0:
                uri = f"s3://bucket/a{self.attempt}/step-{step}"
                point = ResumePoint(uri=uri, manifest_digest=f"sha256:{step}", step=step, attempt=self.attempt)
                self.commits.append(point)
                self.times[uri] = time.monotonic()


@dataclass
class FakeAgent:
    """The agent of one pod."""

    job_uid: str
    slot: int
    pod: str
    node: str
    training: Training
    target: Target | None = None
    reached: float = 0.0
    exited: bool = False
    answering: bool = True
    targets: list[tuple[int, str]] = field(default_factory=list)

    async def serve(self, address: str) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/v1/report", self._get)
        app.router.add_put("/v1/target", self._put)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, address, 7070, reuse_address=True).start()
        return runner

    async def _put(self, request: web.Request) -> web.Response:
        if not self.answering:
            await asyncio.sleep(60)
        target = Target.model_validate_json(await request.read())
        if not supersedes(target, self.target):
            return web.Response(status=409)
        if self.target is None or (target.attempt, target.phase) != (self.target.attempt, self.target.phase):
            self.reached = time.monotonic()
            self.targets.append((target.attempt, target.phase.value))
        self.target = target
        if target.phase == Phase.RUN:
            self.training.start(target.attempt, target.resume_from)
        if target.phase == Phase.RELEASE:
            self.exited = True
        return web.Response()

    async def _get(self, _: web.Request) -> web.Response:
        if not self.answering:
            await asyncio.sleep(60)
        return web.Response(text=self._report().to_json(), content_type="application/json")

    def _report(self) -> Report:
        target, training = self.target, self.training
        state, running = AgentState.IDLE, False
        if target is not None and target.phase == Phase.PREPARE and self.slot == 0:
            state = AgentState.PREPARED
        elif target is not None and target.phase == Phase.RUN:
            running = training.step < training.total_steps
            state = AgentState.RUNNING if running else AgentState.SUCCEEDED
        elif target is not None and target.phase == Phase.DRAIN:
            state = AgentState.DRAINED
        ran = target is not None and target.phase in (Phase.RUN, Phase.DRAIN)
        done = state == AgentState.SUCCEEDED and self.slot == 0
        mine = [c for c in training.commits if target and c.attempt == target.attempt]
        return Report(
            job_uid=self.job_uid,
            slot=self.slot,
            pod=self.pod,
            node=self.node,
            attempt=target.attempt if target else 0,
            phase=target.phase if target else None,
            state=state,
            ranks_alive=1 if running else 0,
            progress=Progress(step=int(training.step), total_steps=training.total_steps, tokens=1) if ran else None,
            checkpoint=self._saves(mine) if ran and self.slot == 0 else CheckpointReport(),
            proposal=self._proposal() if state == AgentState.PREPARED else None,
            model=ModelRef(uri="s3://bucket/model", digest="sha256:model") if done else None,
            seconds_by_category={"productive": time.monotonic() - self.reached} if running else {},
        )

    def _proposal(self) -> ProposedResume:
        data = DatasetRef(uri="s3://bucket/data", digest="sha256:data", tokens=100)
        return ProposedResume(dataset=data, resume=self.training.commits[-1] if self.training.commits else None)

    def _saves(self, mine: list[ResumePoint]) -> CheckpointReport:
        facts = [
            CheckpointFact(
                step=c.step,
                uri=c.uri,
                manifest_digest=c.manifest_digest,
                bytes=100,
                seconds_ago=time.monotonic() - self.training.times[c.uri],
            )
            for c in mine
        ]
        return CheckpointReport(last_committed=facts[-1] if facts else None, committed=facts[-5:])


class FakeNodes:
    """Scheduler, kubelets and node lifecycle over an API server's plain HTTP interface."""

    def __init__(self, request: Any, names: tuple[str, ...], subnet: int) -> None:
        self._request = request
        self._names = names
        self._subnet = subnet
        self._next = 1
        self.dead: set[str] = set()
        self.agents: dict[str, FakeAgent] = {}  # by pod UID
        self._runners: dict[str, web.AppRunner] = {}
        self.training: dict[str, Training] = {}  # by job name
        self.seen_pods: dict[str, list[str]] = {}  # pod name -> UIDs in order
        self.fail_first: set[str] = set()  # pods whose first incarnation is evicted

    async def call(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        answer = await asyncio.to_thread(self._request, method, path, body, content_type=content_type)
        assert answer.status < 500, answer.raw
        assert answer.status in (200, 201, 404, 409), f"{method} {path}: {answer.raw!r}"
        return json.loads(answer.raw) if answer.raw else {}

    async def create_nodes(self) -> None:
        for name in self._names:
            labels = {"kubernetes.io/hostname": name}
            await self.call("POST", "/api/v1/nodes", {"kind": "Node", "metadata": {"name": name, "labels": labels}})
            await self.set_ready(name, True)

    async def set_ready(self, name: str, ready: bool) -> None:
        condition = {"type": "Ready", "status": "True" if ready else "Unknown"}
        status = {
            "conditions": [condition],
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"},
            "capacity": {"cpu": "4", "memory": "8Gi", "pods": "10"},
        }
        path = f"/api/v1/nodes/{name}/status"
        await self.call("PATCH", path, {"status": status}, "application/merge-patch+json")
        # The API server gives a new node the not-ready taint; the node lifecycle controller would take it away.
        taints = {"spec": {"taints": None}}
        await self.call("PATCH", f"/api/v1/nodes/{name}", taints, "application/merge-patch+json")
        (self.dead.discard if ready else self.dead.add)(name)

    def silence(self, node: str) -> None:
        """The machine dies: nothing on it answers any more."""
        self.dead.add(node)
        for agent in self.agents.values():
            if agent.node == node:
                agent.answering = False

    async def run(self, namespace: str) -> None:
        """Be scheduler and kubelets until cancelled."""
        try:
            last = time.monotonic()
            while True:
                now = time.monotonic()
                for training in self.training.values():
                    if any(self._runs(a, training) for a in self.agents.values()):
                        training.advance(now - last)
                last = now
                await self._pass(namespace)
                await asyncio.sleep(0.1)
        finally:
            for runner in self._runners.values():
                with contextlib.suppress(Exception):
                    await runner.cleanup()

    def _runs(self, agent: FakeAgent, training: Training) -> bool:
        wanted = agent.target
        return agent.training is training and agent.answering and wanted is not None and wanted.phase == Phase.RUN

    async def _pass(self, namespace: str) -> None:
        pods = (await self.call("GET", f"/api/v1/namespaces/{namespace}/pods")).get("items") or []
        for pod in pods:
            name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
            known = self.seen_pods.setdefault(name, [])
            if uid not in known:
                known.append(uid)
            node = pod["spec"].get("nodeName")
            if not node:
                await self._bind(namespace, pod, pods)
            elif node not in self.dead:
                await self._kubelet(namespace, pod, node)

    async def _bind(self, namespace: str, pod: Json, pods: list[Json]) -> None:
        used = {
            p["spec"].get("nodeName") for p in pods if p.get("status", {}).get("phase") not in ("Succeeded", "Failed")
        }
        free = [n for n in self._names if n not in used and n not in self.dead]
        if free:
            name = pod["metadata"]["name"]
            body = {"kind": "Binding", "apiVersion": "v1", "metadata": {"name": name}, "target": {"name": free[0]}}
            await self.call("POST", f"/api/v1/namespaces/{namespace}/pods/{name}/binding", body)
            pod["spec"]["nodeName"] = free[0]

    async def _kubelet(self, namespace: str, pod: Json, node: str) -> None:
        name, uid, phase = pod["metadata"]["name"], pod["metadata"]["uid"], pod.get("status", {}).get("phase")
        agent = self.agents.get(uid)
        if pod["metadata"].get("deletionTimestamp"):
            await self._end(uid)
            body = {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}
            await self.call("DELETE", f"/api/v1/namespaces/{namespace}/pods/{name}", body)
        elif agent is None and phase == "Pending":
            if name in self.fail_first:
                self.fail_first.discard(name)
                await self._status(namespace, name, {"phase": "Failed", "reason": "Evicted", "message": "evicted"})
                return
            address = f"127.{self._subnet}.0.{self._next}"
            self._next += 1
            labels = pod["metadata"]["labels"]
            ready = [{"type": "Ready", "status": "True"}]
            if "trireme.dev/slot" not in labels:
                await self._status(namespace, name, {"phase": "Running", "podIP": address, "conditions": ready})
                return
            training = self.training.setdefault(labels["trireme.dev/job-name"], Training())
            slot = int(labels["trireme.dev/slot"])
            agent = FakeAgent(labels["trireme.dev/job-uid"], slot, name, node, training)
            self.agents[uid] = agent
            self._runners[uid] = await agent.serve(address)
            await self._status(namespace, name, {"phase": "Running", "podIP": address, "conditions": ready})
        elif agent is not None and agent.exited and phase == "Running":
            await self._end(uid)
            await self._status(namespace, name, {"phase": "Succeeded"})

    async def _status(self, namespace: str, name: str, status: Json) -> None:
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/status"
        await self.call("PATCH", path, {"status": status}, "application/merge-patch+json")

    async def _end(self, uid: str) -> None:
        self.agents.pop(uid, None)
        runner = self._runners.pop(uid, None)
        if runner is not None:
            await runner.cleanup()
