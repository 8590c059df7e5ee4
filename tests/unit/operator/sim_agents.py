"""Agents, ranks and the object store in model time, following the protocol."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trireme.protocol import (
    AgentState,
    CheckpointFact,
    CheckpointReport,
    DatasetRef,
    Failure,
    FailureKind,
    InputsProblem,
    ModelRef,
    Phase,
    Progress,
    ProposedResume,
    RankReport,
    RejectedCheckpoint,
    Report,
    ResumePoint,
    Section,
    Target,
    supersedes,
)
from trireme.protocol.messages import DRAINED_EXIT_CODE

if TYPE_CHECKING:
    from sim_cluster import Cluster

TOTAL_STEPS = 40
SAVE_EVERY = 3
FENCE_SECONDS = 12.0
DATASET = DatasetRef(uri="s3://b/data", digest="sha256:data", tokens=1000)


@dataclass
class Commit:
    """A manifest in the store."""

    attempt: int
    step: int
    at: float
    good: bool = True
    orphan: bool = False  # a later attempt had started its ranks when this one arrived

    @property
    def uri(self) -> str:
        return f"s3://b/job-1/a{self.attempt}/step-{self.step}"

    @property
    def point(self) -> ResumePoint:
        return ResumePoint(
            uri=self.uri, manifest_digest=f"sha256:{self.attempt}-{self.step}", step=self.step, attempt=self.attempt
        )


@dataclass
class Store:
    """The object store."""

    commits: list[Commit] = field(default_factory=list)
    problem: InputsProblem | None = None  # what every preparation finds
    late: bool = True  # whether an upload may arrive while ranks are being stopped
    resumes: dict[int, ResumePoint | None] = field(default_factory=dict)  # resume.json of each attempt that started

    def lineage(self, before: int) -> list[Commit]:
        """What attempt `before` may resume from, newest first."""
        found: list[Commit] = []
        attempt, limit = max((a for a in self.resumes if a < before), default=0), TOTAL_STEPS
        while attempt:
            mine = [c for c in self.commits if c.attempt == attempt and c.step <= limit]
            found += sorted(mine, key=lambda c: -c.step)
            point = self.resumes.get(attempt)
            attempt, limit = (point.attempt, point.step) if point else (0, 0)
        return found


@dataclass
class Agent:
    """One pod's agent with its ranks (one rank per slot)."""

    cluster: Cluster
    uid: str
    slot: int
    node: str
    address: str
    target: Target | None = None
    ranks_of: int = 0  # attempt whose rank is alive; 0 = none
    finished_of: int = 0  # attempt whose rank ended
    state: AgentState = AgentState.IDLE
    failure: Failure | None = None
    failed_at: float = 0.0
    proposal: ProposedResume | None = None
    problem: InputsProblem | None = None
    prepared_for: int = 0
    heard_operator: float = 0.0
    heard_gang: float = 0.0
    terminating_since: float | None = None
    exit_code: int | None = None
    hung: bool = False
    begun: float = 0.0
    stops_at: float = 0.0
    model: ModelRef | None = None
    uploads_until: float | None = None
    refuses_key: bool = False

    def __post_init__(self) -> None:
        self.heard_operator = self.heard_gang = self.cluster.now

    # -- channel

    def put(self, target: Target) -> bool:
        """PUT /v1/target; False is a 409."""
        self.heard_operator = self.cluster.now
        if not supersedes(target, self.target):
            return False
        self.target = target
        return True

    def report(self) -> Report:
        """GET /v1/report."""
        self.heard_operator = self.cluster.now
        gang, now = self.cluster.gang, self.cluster.now
        attempt = self.target.attempt if self.target else 0
        of_gang = self.ranks_of or self.finished_of
        mine = of_gang == attempt and attempt > 0
        progress = gang.progress if mine and gang.attempt == attempt else None
        saves = self.cluster.store.commits if self.slot == 0 and mine else []
        facts = [
            CheckpointFact(
                step=c.step, uri=c.uri, manifest_digest=c.point.manifest_digest, bytes=10, seconds_ago=now - c.at
            )
            for c in saves
            if c.attempt == attempt
        ]
        rank = RankReport(
            rank=self.slot,
            alive=self.ranks_of > 0,
            section=Section.STEP,
            step=progress.step if progress else 0,
            seconds_in_section=0.0,
            seconds_since_heartbeat=now - gang.stepped if self.hung else 0.0,
        )
        failure = self.failure
        return Report(
            job_uid="job-1",
            slot=self.slot,
            pod=f"j-{self.slot}",
            node=self.node,
            attempt=attempt,
            phase=self.target.phase if self.target else None,
            state=self.state,
            ranks_alive=1 if self.ranks_of else 0,
            ranks=[rank],
            progress=progress,
            checkpoint=CheckpointReport(last_committed=facts[-1] if facts else None, committed=facts[-5:]),
            proposal=self.proposal if self.prepared_for == attempt else None,
            inputs_problem=self.problem if self.prepared_for == attempt else None,
            failure=failure.model_copy(update={"seconds_ago": now - self.failed_at}) if failure and mine else None,
            model=self.model if mine else None,
            seconds_by_category={"productive": now - self.begun} if self.ranks_of else {},
            terminating=self.terminating_since is not None,
        )

    # -- life

    def terminate(self) -> None:
        """SIGTERM."""
        if self.terminating_since is None:
            self.terminating_since = self.cluster.now

    def fail(self, kind: FailureKind, exception: str | None = None, message: str = "", step: int | None = None) -> None:
        """The rank ends."""
        if not self.ranks_of:
            return
        self.finished_of, self.ranks_of, self.hung, self.uploads_until = self.ranks_of, 0, False, None
        self.state = AgentState.FAILED
        at = self.cluster.gang.progress.step if step is None else step
        self.failure = Failure(kind=kind, rank=self.slot, step=at, exception=exception, message=message)
        self.failed_at = self.cluster.now

    def drained(self) -> None:
        """The rank saved and exited."""
        self.finished_of, self.ranks_of, self.state, self.uploads_until = self.ranks_of, 0, AgentState.DRAINED, None

    def tick(self) -> None:
        """Follow the target, and the fence."""
        target, now = self.target, self.cluster.now
        if self.ranks_of and min(now - self.heard_operator, now - self.heard_gang) >= FENCE_SECONDS:
            self.fail(FailureKind.FENCED)
        if target is None or self.exit_code is not None:
            self._leave_if_terminated()
            return
        held = self.ranks_of or self.finished_of
        if held and held < target.attempt:
            if not self._stopped():
                return
            self.ranks_of = self.finished_of = 0
            self.failure, self.hung, self.model, self.uploads_until = None, False, None, None
            self.state = AgentState.IDLE
        again = self.prepared_for != target.attempt or (self.problem is not None and self.problem.retryable)
        if target.phase == Phase.PREPARE and self.slot == 0 and again:
            self._prepare(target)
        elif target.phase == Phase.RUN and self.ranks_of == 0 and self.finished_of != target.attempt:
            self._run(target)
        elif target.phase == Phase.RELEASE:
            self.ranks_of, self.exit_code = 0, 0
        elif target.phase == Phase.HOLD and not self.ranks_of:
            self.state = AgentState.IDLE
        self._leave_if_terminated()

    def _stopped(self) -> bool:
        """Ending ranks takes a while, in which what is on its way to the store may still arrive."""
        if not self.ranks_of:
            return True
        if self.state != AgentState.STOPPING:
            self.state = AgentState.STOPPING
            self.stops_at = self.cluster.now + self.cluster.rng.randrange(5)
        if self.cluster.now < self.stops_at:
            return False
        late = self.cluster.store.late and self.slot == 0 and self.ranks_of == self.cluster.gang.attempt
        if late and self.cluster.rng.random() < 0.3:
            self.cluster.gang.late_commit(self, self.cluster.gang.progress.step)
        return True

    def _leave_if_terminated(self) -> None:
        if self.terminating_since is None or self.ranks_of:
            return
        if self.cluster.now - self.terminating_since > 3.0:
            self.exit_code = DRAINED_EXIT_CODE if self.state == AgentState.DRAINED else self.exit_code or 0

    def _prepare(self, target: Target) -> None:
        self.prepared_for = target.attempt
        self.proposal = self.problem = None
        rejected: list[RejectedCheckpoint] = []
        chosen: ResumePoint | None = None
        for commit in self.cluster.store.lineage(target.attempt):
            if commit.good:
                chosen = commit.point
                break
            rejected.append(RejectedCheckpoint(uri=commit.uri, step=commit.step, reason="DigestMismatch", file="x"))
        begun = max(self.cluster.store.resumes, default=0)
        if begun >= target.attempt:
            message = f"attempt {begun} began"
            self.problem = InputsProblem(
                reason="AttemptInStore", message=message, retryable=True, attempt_in_store=begun
            )
        elif self.cluster.store.problem is not None:
            self.problem = self.cluster.store.problem
        elif chosen is None and (rejected or target.verified is not None):
            self.problem = InputsProblem(reason="AllCheckpointsCorrupt", message="none verifies", retryable=False)
        else:
            self.proposal = ProposedResume(dataset=DATASET, resume=chosen, rejected=rejected)
        self.state = AgentState.PREPARED

    def _run(self, target: Target) -> None:
        self.cluster.gang.starts(self, target)
        self.ranks_of, self.finished_of = target.attempt, 0
        self.state, self.failure, self.begun = AgentState.RUNNING, None, self.cluster.now
        self.heard_gang = self.cluster.now


class Gang:
    """The ranks of the attempt that trains, as one."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.attempt = 0
        self.progress = Progress(step=0, total_steps=TOTAL_STEPS, tokens=0)
        self.stepped = cluster.now
        self.deterministic_failure_at: int | None = None
        self.upload_seconds: float | None = None  # of the save that ranks make as they drain; None: it varies
        self.slots = 2

    def executing(self, attempt: int | None = None) -> list[Agent]:
        """Agents whose ranks execute: alive on a node that runs."""
        return [
            a
            for a in self.cluster.agents.values()
            if a.ranks_of and self.cluster.nodes[a.node].running and attempt in (None, a.ranks_of)
        ]

    def starts(self, agent: Agent, target: Target) -> None:
        """A rank starts: nothing else may be able to commit, and what it loads is what status says."""
        others = [a for a in self.executing() if a.ranks_of != target.attempt and not self.thawed(a)]
        assert not others, (
            f"rank of attempt {target.attempt} starts in slot {agent.slot}, attempt {others[0].ranks_of} can commit"
        )
        status = self.cluster.job["status"]
        if status["gang"]["attempt"] == target.attempt:
            recorded = status["gang"].get("resumeFrom")
            assert status["gang"]["phase"] in ("Running", "Draining", "Finished", "Stopped"), status["gang"]["phase"]
            loaded = target.resume_from.uri if target.resume_from else None
            assert loaded == (recorded["uri"] if recorded else None), f"loads {loaded}, recorded is {recorded}"
        known = self.cluster.store.resumes.setdefault(target.attempt, target.resume_from)
        assert known == target.resume_from, f"attempt {target.attempt} starts from {known} and {target.resume_from}"
        if target.attempt > self.attempt:
            self.attempt = target.attempt
            step = target.resume_from.step if target.resume_from else 0
            self.progress = Progress(step=step, total_steps=TOTAL_STEPS, tokens=step * 10)
            self.stepped = self.cluster.now

    def thawed(self, agent: Agent) -> bool:
        """Whether an agent's clock already says that it must stop, and it had no chance to look."""
        now = self.cluster.now
        return min(now - agent.heard_operator, now - agent.heard_gang) >= FENCE_SECONDS

    def tick(self) -> None:
        """Agents of the gang hear each other."""
        now, nodes = self.cluster.now, self.cluster.nodes
        alive = [a for a in self.cluster.agents.values() if nodes[a.node].reachable]
        for agent in alive:
            peers = [p for p in alive if p.slot != agent.slot and 0 in (p.slot, agent.slot)]
            same = [p for p in peers if p.target and agent.target and p.target.attempt == agent.target.attempt]
            if same:
                agent.heard_gang = now

    def train(self) -> None:
        """One step, when all ranks take part; else peers notice what is lost."""
        whole = [a for a in self.executing(self.attempt) if a.state == AgentState.RUNNING]
        for leader in whole:
            if leader.uploads_until is not None:
                self._upload(leader)
                return
        slots = {a.slot for a in whole if not a.hung and self.cluster.nodes[a.node].reachable}
        alone = [a for a in whole if not self.cluster.nodes[a.node].reachable]
        if len(slots) == self.slots:
            self._step(sorted(whole, key=lambda a: a.slot))
            return
        # A peer whose process ended is noticed; one that is frozen or cut off only hangs.
        ended = {a.slot for a in self.cluster.agents.values() if a.finished_of == self.attempt and not a.ranks_of}
        present = {a.slot for a in self.cluster.agents.values() if a.ranks_of == self.attempt}
        started = self.cluster.store.resumes.get(self.attempt, ...) is not ...
        gone = {slot for slot in range(self.slots) if slot not in present and slot not in ended}
        for agent in whole:
            if agent in alone:
                continue
            vanished = gone and started and self.cluster.now - agent.begun > 8.0
            if not agent.hung and (vanished or ended - {agent.slot}):
                agent.fail(FailureKind.VICTIM)
            elif self.cluster.now - max(self.stepped, agent.begun) > 20.0:
                agent.fail(FailureKind.HANG)

    def _upload(self, leader: Agent) -> None:
        """What the ranks saved as they drained is committed once the leader's upload is done."""
        if self.cluster.now < (leader.uploads_until or 0.0) or not self.cluster.nodes[leader.node].reachable:
            return
        if self.progress.step > self._saved():
            self.commit(leader)
        leader.drained()

    def _step(self, agents: list[Agent]) -> None:
        leader = agents[0]
        target = leader.target
        assert target is not None
        if self.deterministic_failure_at is not None and self.progress.step + 1 >= self.deterministic_failure_at:
            agents[-1].fail(FailureKind.EXCEPTION, "ValueError", "bad batch", step=self.deterministic_failure_at)
            return
        draining = any(a.target and a.target.phase == Phase.DRAIN for a in agents)
        if draining:
            for agent in agents[1:]:
                agent.drained()
            takes = self.cluster.rng.randrange(4) if self.upload_seconds is None else self.upload_seconds
            leader.uploads_until = self.cluster.now + takes
            self._upload(leader)
            return
        step = self.progress.step + 1
        self.progress = Progress(step=step, total_steps=TOTAL_STEPS, tokens=step * 10, loss=5.0, step_seconds=1.0)
        self.stepped = self.cluster.now
        if step % SAVE_EVERY == 0:
            self.commit(leader)
        if step >= TOTAL_STEPS:
            for agent in agents:
                agent.finished_of, agent.ranks_of, agent.state = agent.ranks_of, 0, AgentState.SUCCEEDED
            leader.model = ModelRef(uri=f"s3://b/model/a{self.attempt}", digest="sha256:model")

    def _saved(self) -> int:
        steps = [c.step for c in self.cluster.store.commits if c.attempt == self.attempt]
        start = self.cluster.store.resumes.get(self.attempt)
        return max([*steps, start.step if start else 0])

    def commit(self, leader: Agent) -> None:
        """Rank 0 puts a manifest."""
        attempt = leader.ranks_of
        if any(c.attempt == attempt and c.step == self.progress.step for c in self.cluster.store.commits):
            return
        newer = any(started > attempt for started in self.cluster.store.resumes)
        self.cluster.store.commits.append(
            Commit(attempt=attempt, step=self.progress.step, at=self.cluster.now, orphan=newer)
        )

    def late_commit(self, agent: Agent, step: int) -> None:
        """A thawed rank 0 puts a manifest before its agent looks at the clock."""
        commits, attempt = self.cluster.store.commits, agent.ranks_of
        if any(c.attempt == attempt and c.step == step for c in commits):
            return
        newer = any(started > attempt for started in self.cluster.store.resumes)
        commits.append(Commit(attempt=attempt, step=step, at=self.cluster.now, orphan=newer))
