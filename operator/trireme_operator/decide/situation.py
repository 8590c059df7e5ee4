"""One decision's working view: the observed state with the spec, the slots and the agents' reports looked up once."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from trireme.protocol import AgentState, Phase, Report
from trireme.protocol.messages import PHASE_ORDER
from trireme.resources.common import Timeouts, TrainingJobSpec
from trireme.resources.status import GangPhase, GangStatus, JobStatus, Resolved, SlotStatus
from trireme_operator.decide import capacity, exclusion
from trireme_operator.decide.model import Contact, Observed, PodView

PHASES = {
    GangPhase.FENCING: Phase.HOLD,
    GangPhase.FORMING: Phase.HOLD,
    GangPhase.PREPARING: Phase.PREPARE,
    GangPhase.RUNNING: Phase.RUN,
    GangPhase.DRAINING: Phase.DRAIN,
    GangPhase.FINISHED: Phase.RELEASE,
}
"""What agents are asked for in each phase of the gang; in the others their pods are given back."""

GIVING_BACK = (GangPhase.WAITING, GangPhase.STOPPED)

FENCE_SLACK_SECONDS = 2.0
"""Added to fenceSeconds, because the agent's clock for it may have started a poll later than ours."""


@dataclass(frozen=True)
class Situation:
    """An accepted job. `spec` has the live values of the mutable fields, `resolved` the frozen rest."""

    observed: Observed
    spec: TrainingJobSpec
    resolved: Resolved

    @property
    def now(self) -> float:
        return self.observed.now

    @property
    def status(self) -> JobStatus:
        return self.observed.job.status

    @property
    def gang(self) -> GangStatus:
        return self.status.gang

    @property
    def timeouts(self) -> Timeouts:
        return self.spec.fault_tolerance.timeouts

    @property
    def slots(self) -> range:
        return range(self.resolved.slots)

    @cached_property
    def records(self) -> dict[int, SlotStatus]:
        """What status recorded of each slot."""
        return {slot.index: slot for slot in self.gang.slots}

    @cached_property
    def pods(self) -> dict[int, PodView]:
        """Existing pods by slot; pods beyond the job's slots are ignored."""
        return {pod.slot: pod for pod in self.observed.pods if pod.slot in self.slots}

    @cached_property
    def excluded_nodes(self) -> tuple[str, ...]:
        """Nodes that the job's pods are kept off."""
        if not self.gang.node_records:
            return ()
        return exclusion.excluded(
            self.gang.node_records,
            self.observed.nodes,
            self.spec,
            capacity.pod_requests(self.spec),
            self.resolved.slots,
            self.now,
            self.observed.policy,
        )

    def contact(self, slot: int) -> Contact | None:
        """What the poller knows of a slot's present pod."""
        return self.observed.contact(self.pods.get(slot))

    def report(self, slot: int) -> Report | None:
        """The last report of a slot's present pod, of whatever attempt."""
        contact = self.contact(slot)
        return contact.report if contact else None

    def current(self, slot: int) -> Report | None:
        """A slot's report when it is of the current attempt."""
        report = self.report(slot)
        return report if report is not None and report.attempt == self.gang.attempt else None

    def current_reports(self) -> Iterator[Report]:
        """All reports of the current attempt, slot 0 first."""
        for slot in self.slots:
            report = self.current(slot)
            if report is not None:
                yield report

    def silent_seconds(self, slot: int) -> float:
        """Seconds without a sign of life of the slot's recorded pod, or of its present one."""
        record, pod = self.records.get(slot), self.pods.get(slot)
        uid = (record.pod_uid if record else None) or (pod.uid if pod else None)
        return 0.0 if uid is None else self.observed.silent_seconds(uid)

    def acknowledged(self, slot: int) -> bool:
        """Whether the slot's agent holds the current attempt and no rank of any attempt is alive there."""
        report = self.current(slot)
        return report is not None and report.ranks_alive == 0 and report.state != AgentState.STOPPING

    def reached(self, slot: int, phase: Phase) -> bool:
        """Whether the slot's agent took this phase of the current attempt, or a later one."""
        report = self.current(slot)
        return report is not None and report.phase is not None and PHASE_ORDER[report.phase] >= PHASE_ORDER[phase]

    def node_of(self, slot: int) -> str | None:
        """The node on which the slot is or was."""
        pod, record = self.pods.get(slot), self.records.get(slot)
        return (pod.node if pod else None) or (record.node if record else None)

    def fenced(self, slot: int) -> bool:
        """Whether no rank of an older attempt can be alive in this slot.

        Its agent acknowledged the new attempt with no rank alive; or its pod is gone (or ended), on a node that is
        not known to be down, because then the kubelet confirmed it; or it was silent for fenceSeconds, after which
        its agent has killed the ranks itself.
        """
        record, pod = self.records.get(slot), self.pods.get(slot)
        if record is None or record.pod_uid is None:
            return True  # no rank of an earlier attempt ever ran here since the last fence
        if pod is not None and pod.uid == record.pod_uid and self.acknowledged(slot):
            return True
        gone = pod is None or pod.uid != record.pod_uid or pod.finished
        if gone and self.observed.node_down(record.node) is not True:
            return True
        return self.observed.silent_seconds(record.pod_uid) > self.timeouts.fence_seconds + FENCE_SLACK_SECONDS

    def drain_over(self) -> bool:
        """Whether the time that ranks had to save and exit has passed."""
        since = self.gang.phase_since
        limit = self.timeouts.drain_seconds + 2 * FENCE_SLACK_SECONDS
        return since is not None and self.now - since.timestamp() > limit
