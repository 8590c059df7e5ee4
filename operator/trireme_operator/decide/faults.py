"""Finding out what went wrong: the culprit and not its victims, from agents' reports, pods and nodes."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from trireme.protocol import AgentState, Failure, FailureKind
from trireme.protocol.messages import DRAINED_EXIT_CODE
from trireme.resources.status import GangPhase, ProgressStatus
from trireme_operator.decide import room
from trireme_operator.decide.model import PodView
from trireme_operator.decide.situation import Situation


class Cause(StrEnum):
    """Why an attempt ended, as users read it in events, conditions and status.restarts."""

    EXCEPTION = "Exception"
    EXIT = "ExitCode"
    NAN_LOSS = "NaNLoss"
    OOM_KILLED = "OOMKilled"
    KILLED = "RankKilled"
    HANG = "Hang"
    RESTORE = "RestoreFailed"
    CRASHED = "RankCrashed"
    DEVICE = "DeviceFault"
    LOCAL_DISK = "LocalDiskFailed"
    PEER_LOST = "PeerLost"  # only victims were found
    FENCED = "AgentFenced"
    POD_DELETED = "PodDeleted"
    POD_FAILED = "PodFailed"
    EVICTED = "Evicted"
    NODE_LOST = "NodeLost"
    AGENT_LOST = "AgentUnreachable"
    NOT_STARTED = "PodNotStarted"
    PREEMPTION = "Preemption"
    STATUS_LOST = "StatusLost"  # agents hold an attempt that the stored status does not know of
    RESUMED = "Resumed"
    CREATED = "Created"


class Budget(StrEnum):
    """Which budget a cause is charged to."""

    APPLICATION = "application"
    OUT_OF_MEMORY = "outOfMemory"
    HANG = "hang"
    INFRASTRUCTURE = "infrastructure"


BUDGETS: dict[Cause, Budget | None] = {
    Cause.EXCEPTION: Budget.APPLICATION,
    Cause.EXIT: Budget.APPLICATION,
    Cause.CRASHED: Budget.APPLICATION,
    Cause.NAN_LOSS: Budget.APPLICATION,
    Cause.OOM_KILLED: Budget.OUT_OF_MEMORY,
    Cause.HANG: Budget.HANG,
    Cause.PREEMPTION: None,
    Cause.STATUS_LOST: None,
    Cause.RESUMED: None,
    Cause.CREATED: None,
}
"""Causes that are not listed are the infrastructure's; those with None are charged to nobody."""

_KINDS = {
    FailureKind.EXCEPTION: Cause.EXCEPTION,
    FailureKind.NAN_LOSS: Cause.NAN_LOSS,
    FailureKind.EXIT: Cause.EXIT,
    FailureKind.OOM_KILLED: Cause.OOM_KILLED,
    FailureKind.KILLED: Cause.KILLED,
    FailureKind.HANG: Cause.HANG,
    FailureKind.RESTORE: Cause.RESTORE,
    FailureKind.CRASHED: Cause.CRASHED,
    FailureKind.DEVICE: Cause.DEVICE,
    FailureKind.LOCAL_DISK: Cause.LOCAL_DISK,
    FailureKind.VICTIM: Cause.PEER_LOST,
    FailureKind.FENCED: Cause.FENCED,
}
_CONNECTION_LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|socket closed|connectFullMesh|time(d )?out|remote (process|error)",
    re.IGNORECASE,
)
_EXTERNAL_EXIT_CODES = frozenset({137, 143})  # SIGKILL and SIGTERM from outside


@dataclass(frozen=True)
class Fault:
    """One thing that went wrong."""

    cause: Cause
    slot: int
    began: float  # model time at which it happened, as far as known
    message: str
    node: str | None = None
    failure: Failure | None = None
    exit_code: int | None = None

    @property
    def budget(self) -> Budget | None:
        """The budget that pays for it."""
        return BUDGETS.get(self.cause, Budget.INFRASTRUCTURE)

    @property
    def victim(self) -> bool:
        """Whether something else must have gone wrong before."""
        return self.cause in (Cause.PEER_LOST, Cause.FENCED)


def find(s: Situation, ignoring: Collection[int] = ()) -> Fault | None:
    """The fault that ends the current attempt, or None while there is none, or while the culprit is still unclear.

    Nothing of the slots in `ignoring` counts.
    """
    slots = [slot for slot in s.slots if slot not in ignoring]
    faults = [fault for slot in slots for fault in _of_slot(s, slot)]
    if not faults:
        return None
    culprits = [fault for fault in faults if not fault.victim]
    if not culprits and _refused_by_backend(s, faults):
        return replace(min(faults, key=lambda f: (f.began, f.slot)), cause=Cause.EXCEPTION)
    waiting_for = [slot for slot in slots if _suspect(s, slot) and all(f.slot != slot for f in culprits)]
    first = min(culprits or faults, key=lambda f: (f.began, f.slot))
    patience = max([s.silent_seconds(slot) for slot in waiting_for], default=s.now - first.began)
    limit = s.timeouts.fence_seconds if waiting_for else s.observed.policy.victim_grace_seconds
    if (waiting_for or not culprits) and patience < limit:
        return None  # a node's loss is confirmed, or a culprit reports, a little later than its victims
    if not culprits and waiting_for:
        slot = waiting_for[0]
        return _lost(s, slot, Cause.AGENT_LOST)
    return first


def _refused_by_backend(s: Situation, faults: list[Fault]) -> bool:
    """Whether the collectives' library refused every slot before the first step: then no peer was lost.

    A wrong interface or version fails so, the same in every attempt, with the exception that a lost peer causes later.
    """
    if {fault.slot for fault in faults} != set(s.slots):
        return False
    failures = [fault.failure for fault in faults]
    return all(
        f is not None and f.step == 0 and f.exception == "DistBackendError" and not _CONNECTION_LOST.search(f.message)
        for f in failures
    )


def _of_slot(s: Situation, slot: int) -> Iterator[Fault]:
    """Everything wrong with one slot, in the phases where its pod was recorded as part of the attempt."""
    node = s.node_of(slot)
    failure = _reported(s, slot)
    if failure is not None:
        yield failure
    pod, record = s.pods.get(slot), s.records.get(slot)
    down = s.observed.node_down(node)
    silent = s.silent_seconds(slot)
    began = s.now - silent
    if down and silent > s.timeouts.contact_timeout_seconds:
        yield Fault(Cause.NODE_LOST, slot, began, f"node {node} is not ready and slot {slot} is silent", node)
        return
    if pod is None or (record is not None and record.pod_uid is not None and pod.uid != record.pod_uid):
        yield Fault(Cause.POD_DELETED, slot, began, f"pod of slot {slot} is gone", node)
        return
    if pod.finished:
        if failure is None:
            yield of_pod(s, pod, began)
        return
    if pod.deleting and s.gang.phase != GangPhase.DRAINING and not _drainable(s, slot):
        yield Fault(Cause.POD_DELETED, slot, began, f"pod {pod.name} is being deleted", node)
        return
    lost = _unreachable(s, slot, pod)
    if lost is not None:
        yield lost
        return
    hang = _hang(s, slot)
    if hang is not None and failure is None:
        yield hang


def _reported(s: Situation, slot: int) -> Fault | None:
    report, contact = s.current(slot), s.contact(slot)
    if report is None or contact is None or report.failure is None or report.state != AgentState.FAILED:
        return None
    failure = report.failure
    began = (contact.last or s.now) - failure.seconds_ago
    return Fault(
        _KINDS[failure.kind], slot, began, failure.message or failure.kind.value, s.node_of(slot), failure=failure
    )


def of_pod(s: Situation, pod: PodView, began: float) -> Fault:
    """Classify a pod whose containers ended without the agent telling why."""
    base = Fault(Cause.POD_FAILED, pod.slot, began, pod.message or f"pod {pod.name} ended", pod.node)
    base = replace(base, exit_code=pod.exit_code)
    if pod.reason == "Evicted":
        return replace(base, cause=Cause.EVICTED)
    if pod.disruption or pod.reason in ("Terminated", "NodeShutdown", "Preempting", "NodeAffinity"):
        return replace(base, cause=Cause.EVICTED, message=pod.message or pod.disruption or pod.reason)
    if pod.termination_reason == "OOMKilled":
        return replace(base, cause=Cause.OOM_KILLED, message=f"container of pod {pod.name} exceeded its memory limit")
    if pod.refused:
        where = "any node" if room.refused_everywhere(s) else f"node {pod.node}"
        cause = Cause.EXIT if room.refused_everywhere(s) else Cause.NOT_STARTED
        why = f"{pod.termination_reason}: {pod.message}"
        return replace(base, cause=cause, message=f"pod {pod.name} could not be started on {where}: {why}")
    if pod.exit_code == DRAINED_EXIT_CODE:
        return replace(base, cause=Cause.PREEMPTION, message=f"pod {pod.name} was ended, its ranks saved and exited")
    if pod.exit_code not in (None, 0) and pod.exit_code not in _EXTERNAL_EXIT_CODES:
        return replace(base, cause=Cause.EXIT, message=f"agent of pod {pod.name} exited with code {pod.exit_code}")
    return base


def not_started(s: Situation, pod: PodView) -> Fault:
    """A pod that got its node and never came up there."""
    waited = s.now - pod.bound_at
    why = f": {pod.waiting_reason} {pod.waiting_message}".rstrip() if pod.waiting_reason else ""
    message = f"pod {pod.name} did not come up on node {pod.node} in {waited:.0f} s{why}"
    return Fault(Cause.NOT_STARTED, pod.slot, s.now, message, pod.node)


def _poll_slack(s: Situation) -> float:
    """Silence that a slow poll explains."""
    return min(3.0, s.timeouts.contact_timeout_seconds)


def _suspect(s: Situation, slot: int) -> bool:
    """Whether a slot does not answer and nothing has explained it yet."""
    pod, contact = s.pods.get(slot), s.contact(slot)
    if pod is None or pod.finished or contact is None:
        return False
    return contact.silent_seconds(s.now) > _poll_slack(s)


def _drainable(s: Situation, slot: int) -> bool:
    """Whether the ranks can still be asked to save: the agent of a pod on its way out answers."""
    return s.gang.phase == GangPhase.RUNNING and s.current(slot) is not None and not _suspect(s, slot)


def _unreachable(s: Situation, slot: int, pod: PodView) -> Fault | None:
    """An agent that does not answer although its node seems well.

    Where others answer, the operator's own network is fine, and the wait is short. Where none answers, the fault may
    be the operator's: an operator cut off from the pods must not stop a healthy job, so only the hang limit applies.
    """
    silent = s.silent_seconds(slot)
    others = any(not _suspect(s, other) and other in s.pods for other in s.slots if other != slot)
    unseen_node_down = s.observed.nodes is None and not pod.ready and silent > s.timeouts.contact_timeout_seconds
    if unseen_node_down and s.contact(slot) is not None and (others or s.resolved.slots == 1):
        return _lost(s, slot, Cause.NODE_LOST)
    limit = 2.0 * s.timeouts.fence_seconds if others else float(s.timeouts.step_timeout_seconds)
    limit = max(limit, 2.0 * s.timeouts.contact_timeout_seconds)
    if s.gang.phase == GangPhase.PREPARING:
        limit = max(limit, float(s.timeouts.fence_seconds))
    return _lost(s, slot, Cause.AGENT_LOST) if silent > limit else None


def _lost(s: Situation, slot: int, cause: Cause) -> Fault:
    silent = s.silent_seconds(slot)
    return Fault(cause, slot, s.now - silent, f"slot {slot} did not answer for {silent:.0f} s", s.node_of(slot))


def _hang(s: Situation, slot: int) -> Fault | None:
    """A rank without a heartbeat for longer than its limit: the backstop for an agent that does not see it itself."""
    report = s.current(slot)
    if report is None or report.state != AgentState.RUNNING or s.gang.phase != GangPhase.RUNNING:
        return None
    limit = hang_limit_seconds(s.status.progress, float(s.timeouts.step_timeout_seconds))
    for rank in report.ranks:
        if rank.alive and rank.seconds_since_heartbeat > limit:
            failure = Failure(kind=FailureKind.HANG, rank=rank.rank, step=rank.step)
            message = f"rank {rank.rank} gave no heartbeat for {rank.seconds_since_heartbeat:.0f} s"
            began = s.now - rank.seconds_since_heartbeat
            return Fault(Cause.HANG, slot, began, message, s.node_of(slot), failure=failure)
    return None


def gang_wide(s: Situation) -> bool:
    """Whether ranks of more than one slot stand still, so that a hang says nothing about the node of the first."""
    limit = 0.5 * s.timeouts.step_timeout_seconds
    still = [
        report
        for report in s.current_reports()
        if (report.failure is not None and report.failure.kind == FailureKind.HANG)
        or any(rank.alive and rank.seconds_since_heartbeat > limit for rank in report.ranks)
    ]
    return len(still) > 1


def hang_limit_seconds(progress: ProgressStatus | None, configured: float) -> float:
    """Silence after which a rank hangs: the agent's own limit and a margin, never under ten of the job's steps."""
    learned = 10.0 * (progress.step_seconds or 0.0) if progress else 0.0
    return max(1.25 * configured, configured + 15.0, learned)
