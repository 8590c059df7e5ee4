"""One operator process in model time: the real World, decide() and Executor over the fake API and agents."""

import asyncio
import random
from dataclasses import replace
from typing import Any

from sim_cluster import Cluster, Crash, FakeApi

from trireme.resources import job_kind_named
from trireme_operator.apply.events import EventRecorder
from trireme_operator.apply.executor import Executor, NotLeading, Stale
from trireme_operator.decide import KEY_REFUSED, Contact, Policy, PutTarget
from trireme_operator.decide import core as decide_core
from trireme_operator.observe.queue import JobKey
from trireme_operator.observe.world import World

KEY = JobKey("PretrainJob", "default", "j")
KIND = job_kind_named("PretrainJob")
LOOP = asyncio.new_event_loop()


class FakeAgents:
    """Contacts of one operator with the agents that it reaches."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.contacts: dict[str, Contact] = {}

    def _contact(self, uid: str) -> Contact:
        return self.contacts.setdefault(uid, Contact(pod_uid=uid, since=self.cluster.now))

    def poll(self, uid: str, address: str) -> None:
        contact, agent = self._contact(uid), self.cluster.agents.get(uid)
        if agent is None or agent.address != address or not self.cluster.nodes[agent.node].reachable:
            self.contacts[uid] = replace(contact, error="no answer")
            return
        if agent.refuses_key:
            self.contacts[uid] = replace(contact, last=self.cluster.now, error=KEY_REFUSED)
            return
        self.contacts[uid] = replace(contact, last=self.cluster.now, report=agent.report(), error="")

    def tell(self, job_uid: str, put: PutTarget) -> None:
        contact, agent = self._contact(put.pod_uid), self.cluster.agents.get(put.pod_uid)
        if agent is None or agent.refuses_key or not self.cluster.nodes[agent.node].reachable:
            self.contacts[put.pod_uid] = replace(contact, error="no answer")
            return
        if agent.put(put.target):
            self.contacts[put.pod_uid] = replace(contact, last=self.cluster.now, sent=put.target)


class Operator:
    """A replica; `leading` is what it believes."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self.cluster, self.rng = cluster, rng
        self.queue: list[tuple[str, dict[str, Any]]] = []
        cluster.listeners.append(self.queue)
        self.api = FakeApi(cluster)
        self.leading = True
        self.keys: tuple[bytes, ...] = (b"k" * 32,)
        self.start()

    def start(self) -> None:
        """A fresh process: everything is listed, nothing is remembered."""
        self.queue.clear()
        self.agents = FakeAgents(self.cluster)
        policy = Policy(leading_since=self.cluster.now, default_image="trainer", hold_timeout_seconds=30.0)
        self.world = World({"PretrainJob": KIND}, self.agents, policy, clock=lambda: self.cluster.now)
        self.executor = Executor(
            self.api,  # type: ignore[arg-type]
            self.agents,
            EventRecorder(self.api, "sim"),  # type: ignore[arg-type]
            self.keys,
            lambda: self.leading,
            self._saw_job,
            self.world.pods.handle,
            self.world.obstacles,
        )
        self.relist()

    def relist(self) -> None:
        """The level resync."""
        jobs, pods, nodes = self.world.jobs["PretrainJob"], self.world.pods, self.world.nodes
        assert nodes is not None
        upstream = self.cluster.upstream
        jobs.replace([self.cluster.job, *([upstream] if upstream else [])], jobs.uids())
        pods.replace(list(self.cluster.pods.values()), pods.uids())
        nodes.replace([self.cluster.node_raw(n) for n in self.cluster.nodes.values()], nodes.uids())

    def _saw_job(self, raw: dict[str, Any]) -> None:
        self.world.jobs["PretrainJob"].handle("MODIFIED", raw)

    def deliver(self, count: int | None = None, *, shuffle: bool = False, duplicate: bool = False) -> None:
        """Let some watch events arrive: perhaps out of order, perhaps twice."""
        count = len(self.queue) if count is None else min(count, len(self.queue))
        for _ in range(count):
            index = self.rng.randrange(len(self.queue)) if shuffle else 0
            event, raw = self.queue[index] if duplicate and self.rng.random() < 0.3 else self.queue.pop(index)
            caches = {"PretrainJob": self.world.jobs["PretrainJob"], "Node": self.world.nodes}
            cache = caches.get(raw["kind"], self.world.pods)
            assert cache is not None
            cache.handle(event, raw)

    def poll(self) -> None:
        """Poll the agents of the pods that this operator knows."""
        job = self.world.job(KEY)
        for pod in self.world.pods_of(job) if job is not None else ():
            if pod.address and not pod.finished:
                self.agents.poll(pod.uid, pod.address)

    def reconcile(self, crash_after: int | None = None, passes: int = 1) -> bool:
        """Passes over the job; False when the process crashed."""
        for _ in range(passes):
            observed, raw = self.world.observe(KEY), self.world.raw_job(KEY)
            if observed is None or raw is None:
                return True
            decision = decide_core.decide(observed, KIND)
            self.api.requests_left = crash_after
            try:
                LOOP.run_until_complete(self.executor.execute(observed, raw, KIND, decision))
            except Crash:
                self.api.requests_left = None
                self.start()
                return False
            except (Stale, NotLeading):
                return True
            finally:
                self.api.requests_left = None
            if decision.status is None:
                return True
        return True
