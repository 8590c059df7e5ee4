"""The state machine: one job, three nodes, two operators, and everything that goes wrong between any two actions."""

import random
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sim_agents import FENCE_SECONDS, TOTAL_STEPS
from sim_cluster import Cluster, Node
from sim_operator import Operator

from trireme.protocol import FailureKind
from trireme.resources.status import ConditionType, GangPhase, JobStatus

NODES = ("n1", "n2", "n3")
BUDGETS = {"application": 1, "outOfMemory": 1, "hang": 2, "infrastructure": 40}
SPEC: dict[str, Any] = {
    "model": {"preset": "tinyllama-1.1b"},
    "data": {"sources": [{"uri": "s3://b/text"}], "sequenceLength": 128},
    "training": {"steps": TOTAL_STEPS, "globalBatchSize": 2, "precision": "fp32"},
    "workers": {
        "nodes": 2,
        "devicesPerNode": 1,
        "accelerator": {"kind": "cpu"},
        "resources": {"requests": {"cpu": "1"}},
    },
    "checkpoint": {"uri": "s3://bucket/x", "intervalSteps": 3},
    "faultTolerance": {
        "budgets": BUDGETS,
        "timeouts": {
            "fenceSeconds": int(FENCE_SECONDS),
            "stepTimeoutSeconds": 20,
            "startTimeoutSeconds": 30,
            "drainSeconds": 5,
            "schedulingTimeoutSeconds": 40,
            "contactTimeoutSeconds": 2,
        },
    },
}
AFTER_ANOTHER = {**SPEC, "model": {**SPEC["model"], "startFromJob": {"name": "up"}}}
ORDER = {phase: i for i, phase in enumerate(GangPhase)}
EXPECTED_FAILURES = {
    "ApplicationBudgetExhausted",
    "OutOfMemoryBudgetExhausted",
    "HangBudgetExhausted",
    "InfrastructureBudgetExhausted",
    "DeterministicFailure",
    "NaNLoss",
    "AllCheckpointsCorrupt",
}
slots = st.integers(0, 1)
nodes = st.sampled_from(NODES)
operators = st.integers(0, 1)


class GangMachine(RuleBasedStateMachine):
    """Faults and operators in any order; the invariants hold after every rule and at every status write."""

    def __init__(self) -> None:
        super().__init__()
        self.injected: dict[str, int] = {"application": 0, "outOfMemory": 0, "corrupt": 0, "nan": 0}

    @initialize(
        seed=st.integers(0, 2**16), head_start=st.integers(0, 20), upstream=st.sampled_from((False, False, False, True))
    )
    def begin(self, seed: int, head_start: int, upstream: bool) -> None:
        rng = random.Random(seed)
        self.cluster = Cluster(rng=rng)
        now = self.cluster.now
        self.cluster.nodes = {name: Node(name, seen=now) for name in NODES}
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
            "spec": AFTER_ANOTHER if upstream else SPEC,
        }
        self.seen = JobStatus()
        self.fenced_at = 0.0
        original = self.cluster.put_status

        def checked(body: dict[str, Any]) -> dict[str, Any]:
            answer = original(body)
            self.check_write(JobStatus.model_validate(answer["status"]))
            return answer

        self.cluster.put_status = checked  # type: ignore[method-assign]
        self.operators = [Operator(self.cluster, rng), Operator(self.cluster, rng)]
        self.operators[1].leading = False
        self.run_fairly(head_start)

    # -- what operators do

    @rule(which=operators, count=st.integers(1, 6), shuffle=st.booleans(), duplicate=st.booleans())
    def events_arrive(self, which: int, count: int, shuffle: bool, duplicate: bool) -> None:
        self.operators[which].deliver(count, shuffle=shuffle, duplicate=duplicate)

    @rule(which=operators, crash_after=st.none() | st.integers(0, 5))
    def reconcile(self, which: int, crash_after: int | None) -> None:
        self.operators[which].reconcile(crash_after)

    @rule(which=operators)
    def poll(self, which: int) -> None:
        if self.operators[which].leading:
            self.operators[which].poll()

    @rule(which=operators)
    def operator_restarts(self, which: int) -> None:
        self.operators[which].start()

    @rule(which=operators, leading=st.booleans())
    def leadership(self, which: int, leading: bool) -> None:
        """Both may believe to lead."""
        operator = self.operators[which]
        if leading and not operator.leading:
            operator.agents.contacts.clear()
            operator.world.begin_leading()
        operator.leading = leading

    @rule(seconds=st.integers(5, 25))
    def all_is_well_for_a_while(self, seconds: int) -> None:
        self.run_fairly(seconds)

    @rule(which=operators, seconds=st.integers(1, 25), believes=st.booleans())
    def operator_is_stopped(self, which: int, seconds: int, believes: bool) -> None:
        """SIGSTOP: meanwhile the other one leads; then it goes on where it was, perhaps still believing to lead."""
        other = self.operators[1 - which]
        if not other.leading:
            self.leadership(1 - which, True)
        self.run_fairly(seconds, awake=[other])
        stopped = self.operators[which]
        stopped.leading = stopped.leading and believes
        stopped.reconcile()

    @rule(state=st.sampled_from(("Running", "Failed", "Succeeded", "")))
    def upstream_changes(self, state: str) -> None:
        """The job that ours starts from, where it starts from one: at first there is none. '': it is deleted."""
        old = self.cluster.upstream
        if old is not None and (not state or old["status"]["state"] in ("Failed", "Succeeded")):
            self.cluster.delete_upstream()
            old = None
        if state:
            self.cluster.set_upstream(state, old["metadata"]["uid"] if old else f"up-{self.cluster.version}")

    @rule(seconds=st.integers(1, 12))
    def time_passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self.cluster.tick()

    # -- what goes wrong

    @rule(name=nodes)
    def node_is_killed(self, name: str) -> None:
        node = self.cluster.nodes[name]
        node.alive = node.frozen = False
        for uid, agent in list(self.cluster.agents.items()):
            if agent.node == name:
                del self.cluster.agents[uid]

    @rule(name=nodes)
    def node_freezes(self, name: str) -> None:
        self.cluster.nodes[name].frozen = self.cluster.nodes[name].alive

    @rule(name=nodes)
    def node_is_cut_off(self, name: str) -> None:
        self.cluster.nodes[name].cut = True

    @rule(name=nodes)
    def kubelet_dies(self, name: str) -> None:
        """Its containers live on."""
        self.cluster.nodes[name].kubelet = False

    @rule(name=nodes)
    def node_cannot_end_processes(self, name: str) -> None:
        self.cluster.nodes[name].kills = False

    @rule(name=nodes)
    def node_brings_no_pod_up(self, name: str) -> None:
        self.cluster.nodes[name].starts = False

    @rule(name=nodes, late=st.booleans())
    def node_recovers(self, name: str, late: bool) -> None:
        node = self.cluster.nodes[name]
        thawed = node.frozen
        node.recover()
        leaders = [a for a in self.cluster.agents.values() if a.node == name and a.slot == 0 and a.ranks_of]
        if thawed and late and leaders:
            self.cluster.gang.late_commit(leaders[0], self.cluster.gang.progress.step)

    @rule(slot=slots)
    def rank_raises(self, slot: int) -> None:
        if self._break(slot, FailureKind.EXCEPTION, f"Error{self.cluster.rng.randrange(10**6)}"):
            self.injected["application"] += 1

    @rule(slot=slots)
    def rank_is_killed(self, slot: int) -> None:
        self._break(slot, FailureKind.KILLED)

    @rule(slot=slots)
    def rank_is_out_of_memory(self, slot: int) -> None:
        if self._break(slot, FailureKind.OOM_KILLED):
            self.injected["outOfMemory"] += 1

    @rule(slot=slots)
    def rank_hangs(self, slot: int) -> None:
        for agent in self._with_ranks(slot):
            agent.hung = True

    @precondition(lambda self: self.cluster.rng.random() < 0.1)
    @rule(slot=slots)
    def loss_is_nan(self, slot: int) -> None:
        if self._break(slot, FailureKind.NAN_LOSS):
            self.injected["nan"] += 1

    @precondition(lambda self: self.cluster.rng.random() < 0.1)
    @rule(step=st.integers(1, TOTAL_STEPS))
    def data_is_bad(self, step: int) -> None:
        self.cluster.gang.deterministic_failure_at = step

    @rule(slot=slots)
    def pod_is_deleted(self, slot: int) -> None:
        if f"j-{slot}" in self.cluster.pods:
            self.cluster.delete_pod(f"j-{slot}", None, None, None)

    @rule(slot=slots)
    def pod_is_evicted(self, slot: int) -> None:
        pod = self.cluster.pods.get(f"j-{slot}")
        if pod and pod["status"].get("phase") == "Running" and self._reachable(pod):
            self.cluster.agents.pop(pod["metadata"]["uid"], None)
            self.cluster.change_pod(f"j-{slot}", status={"phase": "Failed", "reason": "Evicted"})

    @precondition(lambda self: self.cluster.rng.random() < 0.3)
    @rule()
    def newest_checkpoint_is_corrupted(self) -> None:
        if self.cluster.store.commits:
            self.cluster.store.commits[-1].good = False
            self.injected["corrupt"] += 1

    @rule(suspend=st.booleans())
    def user_suspends(self, suspend: bool) -> None:
        self.cluster.edit_job(suspend=suspend)

    def _reachable(self, pod: dict[str, Any]) -> bool:
        node = self.cluster.nodes.get(pod["spec"].get("nodeName", ""))
        return node is not None and node.reachable

    def _with_ranks(self, slot: int) -> list[Any]:
        return [a for a in self.cluster.gang.executing() if a.slot == slot]

    def _break(self, slot: int, kind: FailureKind, exception: str | None = None) -> bool:
        agents = self._with_ranks(slot)
        for agent in agents:
            agent.fail(kind, exception, exception or "")
        return bool(agents)

    # -- what must hold

    def check_write(self, new: JobStatus) -> None:
        """At every status write."""
        old = self.seen
        self.seen = new
        for terminal in (ConditionType.SUCCEEDED, ConditionType.FAILED):
            was, now = old.condition(terminal), new.condition(terminal)
            assert not (was and was.status == "True") or (now and now.status == "True"), "terminal stays terminal"
        assert not (old.completion_time and old.gang != new.gang), "a finished job's gang stays as it is"
        assert {c.type for c in new.conditions} == set(ConditionType), "all conditions are present"
        assert old.gang.attempt <= new.gang.attempt <= old.gang.attempt + 1, "attempts are raised one by one"
        assert new.gang.cause != "StatusLost", "no attempt began unknown to a status that was never set back"
        if old.gang.attempt == new.gang.attempt and old.gang.attempt:
            back = (old.gang.phase, new.gang.phase) == (GangPhase.FORMING, GangPhase.WAITING)
            assert back or ORDER[old.gang.phase] <= ORDER[new.gang.phase] or old.gang.phase in (GangPhase.FENCING,), (
                f"{old.gang.phase} -> {new.gang.phase}"
            )
        for name, field in (("application", "application"), ("outOfMemory", "out_of_memory"), ("hang", "hang")):
            assert getattr(new.restarts, field) <= BUDGETS[name], f"budget {name} holds"
        assert new.restarts.infrastructure <= BUDGETS["infrastructure"]
        assert new.restarts.out_of_memory <= self.injected["outOfMemory"], "each fault is charged once"
        total = new.time.seconds.total()
        if new.time.open is not None:
            total += self.cluster.now - new.time.open.since.timestamp()
        assert abs(total - (self.cluster.now - 1_000_000.0)) < 1.0, "every second is in one category"
        if "startFromJob" in self.cluster.job["spec"]["model"] and new.gang.attempt:
            assert [known.digest for known in new.inputs] == [f"sha256:{new.inputs[0].uid}"], "starts from a model"
            assert not old.gang.attempt or old.inputs == new.inputs, "and from the same one for ever"
        if old.gang.phase == GangPhase.FENCING != new.gang.phase:
            self.fenced_at = self.cluster.now
        if new.gang.phase == GangPhase.RUNNING and old.gang.phase != GangPhase.RUNNING:
            self.check_resume(new)

    def check_resume(self, new: JobStatus) -> None:
        """The recorded resume point loses nothing that counts and adopts nothing that does not."""
        store, point = self.cluster.store, new.gang.resume_from
        good = [c for c in store.lineage(new.gang.attempt) if c.good]
        if point is None:
            assert not store.lineage(new.gang.attempt), "never a silent restart from step 0"
            return
        chosen = next(c for c in store.commits if c.uri == point.uri)
        assert not chosen.orphan, "a late commit of a replaced attempt is never adopted"
        # From here on no older attempt could commit: everything before must count.
        newest = max((c.step for c in good if c.at <= self.fenced_at), default=0)
        assert point.step >= newest, f"resumes at {point.step}, but step {newest} was committed"

    @invariant()
    def one_attempt_can_commit(self) -> None:
        if not hasattr(self, "cluster"):
            return
        gang = self.cluster.gang
        attempts = {a.ranks_of for a in gang.executing() if not gang.thawed(a)}
        assert len(attempts) <= 1, f"ranks of attempts {attempts} execute"

    # -- the end

    def run_fairly(self, seconds: int, awake: list[Operator] | None = None) -> None:
        """All operators that are awake see everything; those that lead act."""
        for _ in range(seconds):
            for operator in awake or self.operators:
                operator.deliver()
                if operator.leading:
                    operator.poll()
                    operator.reconcile(passes=6)
            self.cluster.tick()
            self.one_attempt_can_commit()

    def teardown(self) -> None:
        """Once faults stop, the job ends, though one node may stay bad: the other two are enough."""
        if not hasattr(self, "operators"):
            return
        stays = self.cluster.rng.choice(NODES)
        for node in self.cluster.nodes.values():
            bad = node.kubelet, node.kills, node.starts
            node.recover()
            if node.name == stays:
                node.kubelet, node.kills, node.starts = bad
        if self.cluster.job["spec"].get("suspend"):
            self.cluster.edit_job(suspend=False)
        self.operators[0].leading, self.operators[1].leading = True, False
        self.upstream_changes("Succeeded")
        for operator in self.operators:
            operator.relist()
        for _ in range(60):
            self.run_fairly(10)
            if self.seen.completion_time:
                break
        status = self.seen
        assert status.completion_time, f"never ends: {status.state} {status.gang} {status.conditions}"
        failed = status.condition(ConditionType.FAILED)
        if failed and failed.status == "True":
            assert failed.reason in EXPECTED_FAILURES, failed
            assert failed.reason != "AllCheckpointsCorrupt" or self.injected["corrupt"], failed
            assert failed.reason != "NaNLoss" or self.injected["nan"], failed
        else:
            assert status.model is not None
            assert status.progress is not None
            assert status.progress.step == TOTAL_STEPS
        self.run_fairly(20)
        assert self.seen.state == status.state
        assert not self.cluster.gang.executing(), "no rank outlives the job"
