"""Ranks save and exit, because a pod is being ended or the job is suspended."""

from trireme.protocol import AgentState
from trireme.protocol.messages import DRAINED_EXIT_CODE
from trireme.resources.status import GangPhase
from trireme_operator.decide import faults, progress, restarts
from trireme_operator.decide.faults import Cause, Fault
from trireme_operator.decide.model import JobEvent
from trireme_operator.decide.situation import Situation
from trireme_operator.decide.stages import Step, enter, succeed


def leaving(s: Situation, slot: int) -> bool:
    """Whether the slot's pod was told to end, so that its end is nothing new."""
    report, pod = s.report(slot), s.pods.get(slot)
    return (report is not None and report.terminating) or (pod is not None and pod.deleting)


def preemption(s: Situation) -> Fault:
    """That a pod is being ended and the ranks saved for it."""
    slot = next((slot for slot in s.slots if leaving(s, slot)), 0)
    return Fault(Cause.PREEMPTION, slot, s.now, "ranks saved and exited because a pod is being ended", s.node_of(slot))


def preempted(s: Situation) -> Step:
    """The next attempt after ranks were asked to save because a pod is being ended."""
    status, events = restarts.after_fault(s, preemption(s))
    return status, (*_loss(s, "PreemptedUnsaved"), *events)


def _loss(s: Situation, reason: str) -> tuple[JobEvent, ...]:
    """A warning when ranks that were asked to save did not bring it to the store in their time."""
    lost = progress.unsaved(s.status)
    return () if lost is None else (JobEvent("Warning", reason, lost),)


def draining(s: Situation) -> Step | None:
    """Ranks save; afterwards the gang is formed again, or its pods are given back."""
    done = progress.succeeded(s)
    if done is not None:
        return succeed(s, done)
    suspending = s.gang.drain_cause == "Suspend"
    if s.spec.suspend and not suspending:
        return enter(s, GangPhase.DRAINING, drain_cause="Suspend"), ()
    over = s.drain_over() or all(_drained(s, slot) for slot in s.slots)
    saved = [slot for slot in s.slots if slot != 0 and _saved(s, slot)]
    if suspending:
        if not over and faults.find(s, saved) is None:
            return None
        event = JobEvent("Normal", "Suspended", "pods are given back")
        return enter(s, GangPhase.STOPPED), (*_loss(s, "SuspendedUnsaved"), event)
    if over:
        return preempted(s)
    fault = faults.find(s, saved)
    if fault is None:
        return None
    return preempted(s) if fault.cause in _PART_OF_DRAINING else restarts.after_fault(s, fault)


_PART_OF_DRAINING = frozenset({Cause.POD_DELETED, Cause.POD_FAILED, Cause.EVICTED, Cause.PEER_LOST})
"""What the end of a pod that is being drained looks like from outside."""


def _drained(s: Situation, slot: int) -> bool:
    report, pod = s.current(slot), s.pods.get(slot)
    if pod is None or pod.finished:
        return True
    return report is not None and report.state == AgentState.DRAINED and report.ranks_alive == 0


def _saved(s: Situation, slot: int) -> bool:
    """Whether a slot has nothing left to do for the checkpoint, so that its end is no fault while slot 0 commits."""
    record, pod = s.records.get(slot), s.pods.get(slot)
    if pod is not None and pod.exit_code == DRAINED_EXIT_CODE:
        return True
    contact = s.observed.contacts.get(record.pod_uid or "") if record else None
    report = contact.report if contact else None
    if report is None:  # whoever takes over does not know; slot 0 has its time to commit
        return pod is None
    return report.attempt == s.gang.attempt and report.state == AgentState.DRAINED and report.ranks_alive == 0
