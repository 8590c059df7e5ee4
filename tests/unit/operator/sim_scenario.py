"""A job with one operator in the simulated cluster, for tests that tell a story."""

import random
from collections.abc import Callable
from typing import Any

from gang_machine import NODES, SPEC
from sim_agents import Agent
from sim_cluster import Cluster, Node
from sim_operator import Operator

from trireme.resources.status import Condition, ConditionType, GangPhase, JobStatus


class Story:
    """Runs the cluster and one operator together, a second at a time."""

    def __init__(self, *, nodes: tuple[str, ...] = NODES, seed: int = 1, **spec: Any) -> None:
        self.cluster = Cluster(rng=random.Random(seed))
        self.cluster.store.late = False
        now = self.cluster.now
        self.cluster.nodes = {name: Node(name, seen=now) for name in nodes}
        self.cluster.job = {
            "apiVersion": "trireme.dev/v1alpha1",
            "kind": "PretrainJob",
            "metadata": {
                "name": "j",
                "namespace": "default",
                "uid": "job-1",
                "resourceVersion": self.cluster.bump(),
                "generation": 1,
                "creationTimestamp": "1970-01-12T13:46:40Z",
            },
            "spec": {**SPEC, **spec},
        }
        self.operator = Operator(self.cluster, self.cluster.rng)
        self.events: list[tuple[str, str]] = []
        original = self.operator.api.apply

        async def apply(path: str, body: dict[str, Any]) -> dict[str, Any]:
            if body["kind"] == "Event":
                self.events.append((body["reason"], body["message"]))
            return await original(path, body)

        async def create(path: str, body: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
            if body["kind"] == "Event":
                self.events.append((body["reason"], body["message"]))
            return await created(path, body, dry_run=dry_run)

        created = self.operator.api.create
        self.operator.api.apply = apply  # type: ignore[method-assign]
        self.operator.api.create = create  # type: ignore[method-assign]

    @property
    def status(self) -> JobStatus:
        return JobStatus.model_validate(self.cluster.job.get("status") or {})

    def condition(self, kind: ConditionType) -> Condition:
        found = self.status.condition(kind)
        assert found is not None
        return found

    def agent(self, slot: int) -> Agent:
        """The agent of a slot's present pod."""
        uid = self.cluster.pods[f"j-{slot}"]["metadata"]["uid"]
        return self.cluster.agents[uid]

    def token_secret(self, slot: int) -> str:
        """Name of the Secret with the token that the slot's present agent asks for."""
        env = self.cluster.pods[f"j-{slot}"]["spec"]["containers"][0]["env"]
        return str(next(e for e in env if e["name"] == "TRIREME_AGENT_TOKEN")["valueFrom"]["secretKeyRef"]["name"])

    def pod_uid(self, slot: int) -> str:
        return str(self.cluster.pods[f"j-{slot}"]["metadata"]["uid"])

    def run(self, seconds: int = 1) -> None:
        """Let everything work for a while."""
        for _ in range(seconds):
            self.operator.deliver()
            self.operator.poll()
            self.operator.reconcile(passes=8)
            self.cluster.tick()

    def until(self, what: Callable[[], Any], seconds: int = 200) -> None:
        """Run until something is so."""
        for _ in range(seconds):
            if what():
                return
            self.run()
        raise AssertionError(f"not within {seconds} s: {self.status.model_dump_json(indent=1)}")

    def until_step(self, step: int) -> None:
        self.until(lambda: self.cluster.gang.progress.step >= step)

    def until_phase(self, *phases: GangPhase) -> None:
        self.until(lambda: self.status.gang.phase in phases)

    def until_running(self, attempt: int) -> None:
        self.until(lambda: self.status.gang.attempt == attempt and self.status.gang.phase == GangPhase.RUNNING)

    def until_ended(self) -> None:
        self.until(lambda: self.status.completion_time)

    def reasons(self) -> list[str]:
        return [reason for reason, _ in self.events]

    def causes(self) -> dict[str, int]:
        return {c.cause: c.count for c in self.status.restarts.by_cause}

    def kill_node_of(self, slot: int) -> str:
        """SIGKILL to a machine: nobody tells the API server."""
        name = str(self.cluster.pods[f"j-{slot}"]["spec"]["nodeName"])
        self.cluster.nodes[name].alive = False
        for uid, agent in list(self.cluster.agents.items()):
            if agent.node == name:
                del self.cluster.agents[uid]
        return name
