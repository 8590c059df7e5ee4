"""A cluster in model time: API server, scheduler, kubelets, node lifecycle. As faithful as decide() can tell."""

import copy
import random
from dataclasses import dataclass, field
from typing import Any

from sim_agents import Agent, Gang, Store

from trireme_operator.apply.api import ApiError
from trireme_operator.decide.model import to_time

JsonObject = dict[str, Any]
NODE_GRACE_SECONDS = 5.0
GRACE_SECONDS = 10.0  # of a pod
EVICTION_SECONDS = 20.0  # after which pods on a node that is not ready are deleted
JOB_PATH = "/apis/trireme.dev/v1alpha1/namespaces/default/pretrainjobs/"
POD_PATH = "/api/v1/namespaces/default/pods"


@dataclass
class Node:
    """A machine and what is true of it."""

    name: str
    alive: bool = True
    frozen: bool = False
    cut: bool = False  # partitioned from everything
    kubelet: bool = True  # whether it lives; containers do not need it
    starts: bool = True  # whether pods come up; one without a network for pods leaves them Pending
    kills: bool = True  # whether processes end when they are told; one that waits for a device does not
    ready: bool = True
    seen: float = 0.0

    def recover(self) -> None:
        """All is well again."""
        self.alive = self.kubelet = self.starts = self.kills = True
        self.frozen = self.cut = False

    @property
    def running(self) -> bool:
        """Whether its processes execute."""
        return self.alive and not self.frozen

    @property
    def reachable(self) -> bool:
        """Whether its processes answer others."""
        return self.running and not self.cut


@dataclass
class Cluster:
    """State of everything; `now` is model time."""

    rng: random.Random
    now: float = 1_000_000.0
    version: int = 100
    uids: int = 0
    job: JsonObject = field(default_factory=dict)
    upstream: JsonObject | None = None  # the job whose model `job` starts from
    config_maps: list[JsonObject] = field(default_factory=list)  # in the order of their creation, known or not
    pods: dict[str, JsonObject] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    agents: dict[str, Agent] = field(default_factory=dict)  # by pod UID; outlive the pod's object on a lost node
    store: Store = field(default_factory=Store)
    listeners: list[list[tuple[str, JsonObject]]] = field(default_factory=list)
    address: int = 1
    gates: tuple[str, ...] = ()  # what a queue's webhook holds new pods with
    undying: set[str] = field(default_factory=set)  # UIDs of pods whose containers got SIGKILL and remain

    def __post_init__(self) -> None:
        self.gang = Gang(self)

    # -- API server

    def bump(self) -> str:
        self.version += 1
        return str(self.version)

    def announce(self, event: str, raw: JsonObject) -> None:
        for queue in self.listeners:
            queue.append((event, raw))  # nobody changes an object: each change makes a new one

    def node_raw(self, node: Node) -> JsonObject:
        return {
            "kind": "Node",
            "metadata": {"name": node.name, "uid": f"node-{node.name}", "resourceVersion": self.bump(), "labels": {}},
            "spec": {},
            "status": {
                "conditions": [{"type": "Ready", "status": "True" if node.ready else "Unknown"}],
                "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10", "trireme.dev/cpu-rank": "4"},
            },
        }

    def get_job(self) -> JsonObject:
        return self.job

    def put_status(self, body: JsonObject) -> JsonObject:
        """PUT of the status subresource."""
        if body["metadata"]["resourceVersion"] != self.job["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "the object has been modified")
        self.job = {**self.job, "status": body["status"]}
        self.job["metadata"] = {**self.job["metadata"], "resourceVersion": self.bump()}
        self.announce("MODIFIED", self.job)
        return self.get_job()

    def edit_job(self, **spec: Any) -> None:
        """A user changes the spec."""
        metadata = self.job["metadata"]
        self.job = {**self.job, "spec": {**self.job["spec"], **spec}}
        self.job["metadata"] = {**metadata, "resourceVersion": self.bump(), "generation": metadata["generation"] + 1}
        self.announce("MODIFIED", self.job)

    def set_upstream(self, state: str, uid: str = "up-1") -> None:
        """The job that `job` starts from is there, in this state."""
        status: JsonObject = {"state": state}
        if state == "Succeeded":
            status["model"] = {"uri": f"s3://bucket/{uid}/model", "digest": f"sha256:{uid}"}
        if state == "Failed":
            failed = {"type": "Failed", "status": "True", "reason": "NaNLoss", "message": "loss nan at step 7"}
            status["conditions"] = [{**failed, "lastTransitionTime": to_time(self.now).isoformat()}]
        self.upstream = {
            **self.job,
            "metadata": {**self.job["metadata"], "name": "up", "uid": uid, "resourceVersion": self.bump()},
            "status": status,
        }
        self.announce("MODIFIED", self.upstream)

    def delete_upstream(self) -> None:
        if self.upstream is not None:
            metadata = {**self.upstream["metadata"], "resourceVersion": self.bump()}
            self.announce("DELETED", {**self.upstream, "metadata": metadata})
            self.upstream = None

    def create_pod(self, body: JsonObject) -> JsonObject:
        name = body["metadata"]["name"]
        if name in self.pods:
            raise ApiError(409, "AlreadyExists", name)
        self.uids += 1
        raw = copy.deepcopy(body)
        raw["metadata"] |= {
            "uid": f"pod-{self.uids}",
            "resourceVersion": self.bump(),
            "creationTimestamp": to_time(self.now).isoformat(),
        }
        raw["status"] = {"phase": "Pending"}
        if self.gates:
            raw["spec"]["schedulingGates"] = [{"name": gate} for gate in self.gates]
        self.pods[name] = raw
        self.announce("ADDED", raw)
        return raw

    def delete_pod(self, name: str, uid: str | None, version: str | None, grace: int | None) -> JsonObject:
        pod = self.pods.get(name)
        if pod is None:
            raise ApiError(404, "NotFound", name)
        if uid is not None and pod["metadata"]["uid"] != uid:
            raise ApiError(409, "Conflict", "uid")
        if version is not None and pod["metadata"]["resourceVersion"] != version:
            raise ApiError(409, "Conflict", "resourceVersion")
        if grace == 0 or not pod["spec"].get("nodeName"):
            self.remove_pod(name)
            return pod
        if not pod["metadata"].get("deletionTimestamp"):
            self.change_pod(name, metadata={"deletionTimestamp": to_time(self.now + GRACE_SECONDS).isoformat()})
        return self.pods[name]

    def remove_pod(self, name: str) -> None:
        pod = self.pods.pop(name)
        pod = {**pod, "metadata": {**pod["metadata"], "resourceVersion": self.bump()}}
        self.announce("DELETED", pod)

    def change_pod(self, name: str, **parts: JsonObject) -> None:
        parts["metadata"] = {**parts.get("metadata", {}), "resourceVersion": self.bump()}
        pod = {**self.pods[name]}
        for part, values in parts.items():
            pod[part] = {**pod.get(part, {}), **values}
        self.pods[name] = pod
        self.announce("MODIFIED", pod)

    def open_gates(self) -> None:
        """The queue lets its pods go, and holds no others."""
        self.gates = ()
        for name in self.pods:
            self.change_pod(name, spec={"schedulingGates": []})

    # -- what runs by itself

    def tick(self, seconds: float = 1.0) -> None:
        """Let time pass, and everything do its part."""
        self.now += seconds
        self._lifecycle()
        self._schedule()
        self._kubelets()
        self.gang.tick()
        for agent in list(self.agents.values()):
            if self.nodes[agent.node].running:
                agent.tick()
        self.gang.train()

    def _lifecycle(self) -> None:
        for node in self.nodes.values():
            if node.reachable and node.kubelet:
                node.seen = self.now
            ready = self.now - node.seen < NODE_GRACE_SECONDS
            if ready != node.ready:
                node.ready = ready
                self.announce("MODIFIED", self.node_raw(node))
            if self.now - node.seen > NODE_GRACE_SECONDS + EVICTION_SECONDS:
                for name, pod in list(self.pods.items()):
                    if pod["spec"].get("nodeName") == node.name:
                        self.delete_pod(name, None, None, None)

    def _schedule(self) -> None:
        for name, pod in list(self.pods.items()):
            if pod["spec"].get("nodeName") or pod["metadata"].get("deletionTimestamp"):
                continue
            if pod["spec"].get("schedulingGates"):
                continue
            used = {p["spec"].get("nodeName") for p in self.pods.values()}
            excluded = set(excluded_of(pod))
            free = [n for n in self.nodes.values() if n.ready and n.name not in used | excluded]
            if free:
                bound = {"type": "PodScheduled", "status": "True", "lastTransitionTime": to_time(self.now).isoformat()}
                self.change_pod(name, spec={"nodeName": self.rng.choice(free).name}, status={"conditions": [bound]})

    def _kubelets(self) -> None:
        for name, pod in list(self.pods.items()):
            node = self.nodes.get(pod["spec"].get("nodeName", ""))
            if node is None or not node.reachable or not node.kubelet:
                continue
            uid, phase = pod["metadata"]["uid"], pod["status"].get("phase")
            agent = self.agents.get(uid)
            if uid in self.undying:
                if node.kills:
                    self.remove_pod(name)
                continue
            if phase in ("Succeeded", "Failed"):
                self.agents.pop(uid, None)
                if pod["metadata"].get("deletionTimestamp"):
                    self.remove_pod(name)
            elif agent is None and phase == "Pending":
                if pod["metadata"].get("deletionTimestamp"):
                    self.remove_pod(name)
                elif node.starts:
                    self._start(name, pod, node)
            elif agent is None:
                self.change_pod(name, status={"phase": "Failed", "reason": "", **_ended(137)})
            elif agent.exit_code is not None and not node.kills:
                self.agents.pop(uid)
                self.undying.add(uid)
            elif agent.exit_code is not None:
                self.agents.pop(uid)
                done = "Succeeded" if agent.exit_code == 0 else "Failed"
                self.change_pod(name, status={"phase": done, **_ended(agent.exit_code)})
            elif pod["metadata"].get("deletionTimestamp"):
                agent.terminate()
                if self.now - (agent.terminating_since or self.now) > GRACE_SECONDS:
                    self.agents.pop(uid)
                    self.undying.add(uid)
                    if node.kills:
                        self.remove_pod(name)
        existing = {pod["metadata"]["uid"] for pod in self.pods.values()}
        for uid, agent in list(self.agents.items()):
            if uid not in existing and self.nodes[agent.node].reachable and self.nodes[agent.node].kubelet:
                del self.agents[uid]  # the kubelet ends what the API does not know

    def _start(self, name: str, pod: JsonObject, node: Node) -> None:
        self.address += 1
        slot = int(pod["metadata"]["labels"]["trireme.dev/slot"])
        uid = pod["metadata"]["uid"]
        self.agents[uid] = Agent(cluster=self, uid=uid, slot=slot, node=node.name, address=f"10.0.0.{self.address}")
        status = {
            "phase": "Running",
            "podIP": f"10.0.0.{self.address}",
            "conditions": [*pod["status"].get("conditions", []), {"type": "Ready", "status": "True"}],
        }
        self.change_pod(name, status=status)


def _ended(code: int) -> JsonObject:
    return {"containerStatuses": [{"name": "trainer", "state": {"terminated": {"exitCode": code}}}]}


def excluded_of(pod: JsonObject) -> list[str]:
    """Nodes that a pod's affinity keeps it off."""
    required = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
    terms = required.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    return [value for term in terms for field_ in term.get("matchFields", []) for value in field_["values"]]


class Crash(Exception):
    """The operator's process ended here."""


class FakeApi:
    """One operator's way to the API server; may crash the operator between any two requests."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.requests_left: int | None = None

    def _count(self) -> None:
        if self.requests_left is not None:
            if self.requests_left == 0:
                raise Crash
            self.requests_left -= 1

    async def get(self, path: str) -> JsonObject:
        self._count()
        assert path.startswith(JOB_PATH), path
        return self.cluster.get_job()

    async def replace(self, path: str, body: JsonObject) -> JsonObject:
        self._count()
        assert path.endswith("/status"), path
        return self.cluster.put_status(body)

    async def create(self, path: str, body: JsonObject, *, dry_run: bool = False) -> JsonObject:
        self._count()
        if body["kind"] == "ConfigMap":
            self.cluster.config_maps.append(body)
        if path != POD_PATH:
            return body
        return body if dry_run else self.cluster.create_pod(body)

    async def list_all(self, path: str, query: tuple[tuple[str, str], ...] = ()) -> list[JsonObject]:
        self._count()
        ((_, selector),) = query
        found = self.cluster.pods.get(selector.removeprefix("metadata.name="))
        return [] if found is None else [found]

    async def apply(self, path: str, body: JsonObject) -> JsonObject:
        self._count()
        return body

    async def delete(
        self, path: str, *, uid: str, resource_version: str | None = None, grace_seconds: int | None = None
    ) -> JsonObject:
        self._count()
        assert path.startswith(POD_PATH), path
        return self.cluster.delete_pod(path.rsplit("/", 1)[1], uid, resource_version, grace_seconds)
