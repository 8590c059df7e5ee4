"""Everything the operator sees, put together for one decision."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from trireme.resources.common import TrainingJobSpec
from trireme.resources.references import References
from trireme.resources.status import TERMINAL_STATES, ConditionType, GangPhase, JobState
from trireme_operator.build.names import LABEL_KIND, LABEL_NAME, LABEL_UID, controlled_by
from trireme_operator.decide import (
    Claim,
    Contact,
    JobView,
    Kind,
    NodeView,
    Observed,
    Obstacle,
    PodView,
    Policy,
    Upstream,
    UpstreamView,
)
from trireme_operator.decide.capacity import pod_requests
from trireme_operator.decide.kinds import parse
from trireme_operator.decide.upstreams import outstanding
from trireme_operator.observe.cache import Cache, JsonObject
from trireme_operator.observe.queue import JobKey
from trireme_operator.observe.usage import NodeUsage
from trireme_operator.observe.views import UnreadableStatus, job_view, pod_view
from trireme_operator.services.names import LABEL_UID as SERVICE_UID


class Contacts(Protocol):
    """Who knows the agents."""

    contacts: dict[str, Contact]


class World:
    """Caches of jobs, pods and nodes, and the agents' contacts."""

    def __init__(
        self, kinds: dict[str, Kind], agents: Contacts, policy: Policy, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self.kinds = kinds
        self.jobs = {name: Cache() for name in kinds}
        self._usage = NodeUsage()
        self.pods = Cache(LABEL_UID, SERVICE_UID, on_change=self._usage.pod_changed)
        self.nodes: Cache | None = Cache()
        self.agents = agents
        self.policy = policy
        self.obstacles: dict[str, Obstacle] = {}  # by job UID
        self._views: dict[str, JobView] = {}  # by UID
        self._specs: dict[str, TrainingJobSpec | None] = {}  # by UID, as resolved

    @property
    def synced(self) -> bool:
        """Whether everything was listed once; of a kind of job that may not be listed, none is looked after."""
        needed = [self.pods, *([self.nodes] if self.nodes is not None else [])]
        return all(cache.synced for cache in needed) and all(cache.settled for cache in self.jobs.values())

    def begin_leading(self) -> None:
        """Silence of agents counts from now on: before, nobody asked them."""
        self.policy = replace(self.policy, leading_since=self._clock())

    def job_keys(self) -> list[JobKey]:
        """All jobs."""
        return [
            JobKey(kind, raw["metadata"].get("namespace", ""), raw["metadata"]["name"])
            for kind, cache in self.jobs.items()
            for raw in cache
        ]

    def raw_job(self, key: JobKey) -> JsonObject | None:
        """A job as it was last seen."""
        return self.jobs[key.kind].get(key.namespace, key.name)

    def job(self, key: JobKey) -> JobView | None:
        """A job, parsed; the same object while its version is the same. Raises UnreadableStatus."""
        raw = self.raw_job(key)
        if raw is None:
            return None
        return self._view(raw)

    def _view(self, raw: JsonObject) -> JobView:
        uid, version = raw["metadata"]["uid"], raw["metadata"]["resourceVersion"]
        view = self._views.get(uid)
        if view is None or view.resource_version != version:
            view = self._views[uid] = job_view(raw)
        return view

    def pods_of(self, job: JobView) -> tuple[PodView, ...]:
        """The pods of a job. Labels are anybody's to set, and these pods get the job's bearer token: a pod is the job's
        only in its namespace, under a slot's name, with the job as its controller."""
        found = []
        for raw in self.pods.labelled(job.uid):
            view = pod_view(raw)
            if view is None or not controlled_by(raw, job.uid):
                continue
            if raw["metadata"].get("namespace") == job.namespace and view.name == f"{job.name}-{view.slot}":
                found.append(view)
        return tuple(found)

    def observe(self, key: JobKey) -> Observed | None:
        """What decide() sees of one job; None when the job is gone."""
        job = self.job(key)
        if job is None:
            return None
        nodes = self.node_views()
        waits = job.status.gang.phase in (GangPhase.WAITING, GangPhase.FORMING, GangPhase.FENCING)
        return Observed(
            now=self._clock(),
            job=job,
            pods=self.pods_of(job),
            nodes=nodes,
            contacts=self.agents.contacts,
            claims=self._claims(job.uid) if waits and nodes is not None else (),
            upstreams=self._upstreams(key.kind, job),
            obstacle=self.obstacles.get(job.uid),
            policy=self.policy,
        )

    def node_views(self) -> tuple[NodeView, ...] | None:
        """All nodes with what is free on them; None where nodes cannot be seen."""
        return None if self.nodes is None else self._usage.views(self.nodes)

    def accepted_spec(self, job: JobView) -> TrainingJobSpec | None:
        """The spec as it was accepted; None before, and when it is not valid any more."""
        return self._accepted_spec(job.kind, job)

    def _claims(self, me: str) -> tuple[Claim, ...]:
        """Capacity that other jobs are about to take."""
        found = []
        for kind, cache in self.jobs.items():
            for raw in cache:
                if raw["metadata"]["uid"] == me or raw["metadata"].get("deletionTimestamp"):
                    continue
                try:
                    claim = self._claim(kind, self._view(raw))
                except UnreadableStatus:
                    continue
                if claim is not None:
                    found.append(claim)
        return tuple(found)

    def _claim(self, kind: str, job: JobView) -> Claim | None:
        resolved, gang = job.status.resolved, job.status.gang
        if resolved is None or job.status.state in TERMINAL_STATES:
            return None
        if gang.phase not in (GangPhase.WAITING, GangPhase.FORMING) or job.spec.get("suspend"):
            return None
        if gang.not_before is not None and gang.not_before.timestamp() > self._clock():
            return None
        spec = self._accepted_spec(kind, job)
        if spec is None or outstanding(job.status.inputs, self._upstreams(kind, job)):
            return None
        pods = self.pods_of(job)
        unbound = sum(1 for pod in pods if pod.node is None and not pod.finished and not pod.deleting)
        return Claim(
            created=job.created,
            uid=job.uid,
            requests=pod_requests(spec),
            unbound=unbound,
            missing=max(0, resolved.slots - len(pods)),
            waiting=gang.phase == GangPhase.WAITING,
            spec=spec,
            name=job.name,
            own_nodes=frozenset(pod.node for pod in pods if pod.node),
        )

    def _accepted_spec(self, kind: str, job: JobView) -> TrainingJobSpec | None:
        """The spec as it was accepted; None before, and when it is not valid any more."""
        if job.status.resolved is None:
            return None
        if job.uid not in self._specs:
            self._specs[job.uid] = parse(self.kinds[kind], job.status.resolved.spec)
        return self._specs[job.uid]

    def _upstreams(self, kind: str, job: JobView) -> tuple[Upstream, ...]:
        """The jobs whose models a job asks for."""
        spec = self._accepted_spec(kind, job)
        return () if spec is None else self.upstreams(job.namespace, self.kinds[kind].references(spec))

    def upstreams(self, namespace: str, references: References) -> tuple[Upstream, ...]:
        """The jobs that a spec names, as they are."""
        return tuple(
            Upstream(field, reference, self._upstream(JobKey(reference.kind, namespace, reference.name)))
            for field, reference in references.items()
        )

    def _upstream(self, key: JobKey) -> UpstreamView | None:
        raw = self.raw_job(key)
        if raw is None:
            return None
        try:
            job = self._view(raw)
        except UnreadableStatus:  # of a newer operator's making, or damaged: it says nothing
            return UpstreamView(uid=raw["metadata"]["uid"])
        status = job.status
        of = ConditionType.ACCEPTED if status.state == JobState.REJECTED else ConditionType.FAILED
        condition = status.condition(of)
        failure = f"{condition.reason}: {condition.message}" if condition else ""
        return UpstreamView(job.uid, job.deleting, status.state, status.model, failure)

    def job_of_pod(self, raw: JsonObject) -> JobKey | None:
        """The job that a pod matters to: also one that waits until its predecessor's pod leaves the name."""
        labels = raw["metadata"].get("labels") or {}
        namespace, name = raw["metadata"].get("namespace", ""), labels.get(LABEL_NAME, "")
        kinds = [kind for kind in self.jobs if kind == labels.get(LABEL_KIND, kind)]
        return next((JobKey(k, namespace, name) for k in kinds if self.jobs[k].get(namespace, name)), None)

    def on_node(self, name: str) -> list[JobKey]:
        """Jobs with a pod on a node."""
        pods = [raw for key in self._usage.pods_on(name) if (raw := self.pods.get(*key)) is not None]
        return sorted({key for raw in pods if (key := self.job_of_pod(raw)) is not None})

    def forget_gone(self) -> None:
        """Drop what is remembered of jobs that are gone."""
        present = {raw["metadata"]["uid"] for cache in self.jobs.values() for raw in cache}
        for known in (self._views, self._specs, self.obstacles):
            for uid in [uid for uid in known if uid not in present]:
                known.pop(uid)

    def waiting(self) -> list[JobKey]:
        """Jobs that wait for capacity."""
        return [
            key
            for key in self.job_keys()
            if (self.raw_job(key) or {}).get("status", {}).get("gang", {}).get("phase") in ("Waiting", "Forming")
        ]
