"""The nine conditions and the state derived from them. docs/conditions.md lists every reason."""

from typing import Literal

from trireme.protocol import AgentState
from trireme.resources.status import (
    Category,
    Condition,
    ConditionType,
    GangPhase,
    JobState,
    JobStatus,
)
from trireme_operator.decide import progress, room, upstreams
from trireme_operator.decide.model import Observed, to_time
from trireme_operator.decide.situation import Situation

Value = Literal["True", "False", "Unknown"]
Finding = tuple[Value, str, str]

UNPLANNED = frozenset({"", "Created", "Resumed"})
"""Causes of an attempt that are no restart after a fault."""


def put(
    status: JobStatus, observed: Observed, kind: ConditionType, value: Value, reason: str, message: str = ""
) -> JobStatus:
    """`status` with one condition set; its transition time moves only when its value changes."""
    old = status.condition(kind)
    since = old.last_transition_time if old is not None and old.status == value else to_time(int(observed.now))
    new = Condition(
        type=kind.value,
        status=value,
        observed_generation=observed.job.generation,
        last_transition_time=since,
        reason=reason,
        message=message,
    )
    by_type = {c.type: c for c in status.conditions} | {kind.value: new}
    order = {kind.value: index for index, kind in enumerate(ConditionType)}
    return status.model_copy(
        update={"conditions": sorted(by_type.values(), key=lambda c: order.get(c.type, len(order)))}
    )


def holds(status: JobStatus, kind: ConditionType) -> bool:
    """Whether a condition is True."""
    condition = status.condition(kind)
    return condition is not None and condition.status == "True"


def refresh(status: JobStatus, observed: Observed, s: Situation | None) -> JobStatus:
    """All conditions and the state for `status`, which may be a step ahead of what `s` observed."""
    findings: dict[ConditionType, Finding] = {
        ConditionType.ACCEPTED: _accepted(status),
        ConditionType.INPUTS_READY: _inputs_ready(status, s),
        ConditionType.SCHEDULED: _scheduled(status, s),
        ConditionType.RUNNING: _running(status, s),
        ConditionType.RESTARTING: _restarting(status),
        ConditionType.CHECKPOINT_HEALTHY: _checkpoint(status, observed),
        ConditionType.SUSPENDED: _suspended(status, observed),
        ConditionType.SUCCEEDED: _kept(status, ConditionType.SUCCEEDED, "NotFinished"),
        ConditionType.FAILED: _kept(status, ConditionType.FAILED, "NotFailed"),
    }
    for kind, (value, reason, message) in findings.items():
        status = put(status, observed, kind, value, reason, message)
    return status.model_copy(update={"state": derive_state(status), "observed_generation": observed.job.generation})


def derive_state(status: JobStatus) -> JobState:
    """The one-word state."""
    phase = status.gang.phase
    accepted = status.condition(ConditionType.ACCEPTED)
    if holds(status, ConditionType.FAILED):
        return JobState.FAILED
    if holds(status, ConditionType.SUCCEEDED):
        return JobState.SUCCEEDED
    if accepted is None or accepted.status == "Unknown":
        return JobState.PENDING
    if accepted.status == "False":
        return JobState.REJECTED
    if holds(status, ConditionType.SUSPENDED):
        return JobState.SUSPENDED
    if phase == GangPhase.STOPPED or (phase == GangPhase.DRAINING and status.gang.drain_cause == "Suspend"):
        return JobState.SUSPENDING
    if holds(status, ConditionType.RESTARTING):
        return JobState.RESTARTING
    if holds(status, ConditionType.RUNNING):
        return JobState.RUNNING
    if phase == GangPhase.RUNNING:
        return JobState.STARTING
    if phase == GangPhase.PREPARING or (phase == GangPhase.FORMING and holds(status, ConditionType.SCHEDULED)):
        return JobState.PREPARING
    return JobState.SCHEDULING if phase == GangPhase.FORMING and status.gang.slots else JobState.QUEUED


def nominal_category(status: JobStatus) -> Category:
    """The category of a second that no agent reports about."""
    phase, planned = status.gang.phase, status.gang.cause in UNPLANNED
    if phase in (GangPhase.RUNNING, GangPhase.DRAINING):
        progress, gang = status.progress, status.gang
        resumed_at = gang.resume_from.step if gang.resume_from else 0
        if progress is None or progress.step <= resumed_at or not holds(status, ConditionType.RUNNING):
            return Category.STARTUP
        return Category.PRODUCTIVE if progress.step >= gang.recompute_until_step else Category.RECOMPUTE
    if phase == GangPhase.STOPPED:
        return Category.SUSPENDED
    if phase == GangPhase.FENCING or not planned:
        return Category.DOWN if not planned else Category.QUEUED
    if phase == GangPhase.PREPARING:
        return Category.STARTUP
    if phase == GangPhase.FORMING and holds(status, ConditionType.SCHEDULED):
        return Category.STARTUP
    return Category.SCHEDULING if phase == GangPhase.FORMING and status.gang.slots else Category.QUEUED


def _kept(status: JobStatus, kind: ConditionType, otherwise: str) -> Finding:
    old = status.condition(kind)
    if old is not None and old.status == "True":
        return "True", old.reason, old.message
    return "False", otherwise, ""


def _accepted(status: JobStatus) -> Finding:
    if status.resolved is not None:
        r = status.resolved
        return "True", "Accepted", f"{r.slots} pods with {r.ranks_per_slot} ranks each: {_layout(r.plan)}"
    old = status.condition(ConditionType.ACCEPTED)
    if old is not None and old.status == "False":
        return "False", old.reason, old.message
    return "Unknown", "Pending", "not looked at yet"


def _layout(plan: dict[str, object]) -> str:
    axes = [f"{axis} {plan[axis]}" for axis in ("tensor", "pipeline", "data", "context") if axis in plan]
    return " x ".join(axes)


def _inputs_ready(status: JobStatus, s: Situation | None) -> Finding:
    old = status.condition(ConditionType.INPUTS_READY)
    report = s.current(0) if s is not None else None
    if s is None or status.gang.phase == GangPhase.FINISHED:
        # Inputs that failed the job are seen by the very write that ends it.
        if report is not None and report.inputs_problem is not None and holds(status, ConditionType.FAILED):
            return "False", report.inputs_problem.reason, report.inputs_problem.message
        return (old.status, old.reason, old.message) if old else ("Unknown", "NotChecked", "")
    waits = upstreams.finding(status.inputs, s.observed.upstreams)
    if waits is not None:
        return "False", *waits
    for slot in s.slots:
        pod = s.pods.get(slot)
        if pod is not None and pod.waiting_reason in room.IMAGE_REASONS:
            return "False", "ImagePullFailed", f"pod {pod.name}: {pod.waiting_reason}: {pod.waiting_message}"
        if pod is not None and pod.waiting_reason in room.CONFIG_REASONS:
            return "False", "ContainerConfigInvalid", f"pod {pod.name}: {pod.waiting_reason}: {pod.waiting_message}"
    if report is not None and report.inputs_problem is not None:
        return "False", report.inputs_problem.reason, report.inputs_problem.message
    if status.dataset is not None:
        return "True", "Verified", f"{status.dataset.tokens} tokens, digest {status.dataset.digest}"
    return "Unknown", "NotChecked", "no agent has checked storage and data yet"


def _scheduled(status: JobStatus, s: Situation | None) -> Finding:
    phase = status.gang.phase
    if s is None:
        return "False", "WaitingForAdmission", ""
    if phase == GangPhase.FINISHED:
        return "False", "Finished", "pods are released"
    if phase == GangPhase.STOPPED:
        return "False", "Suspended", "pods are deleted while the job is suspended"
    if upstreams.outstanding(status.inputs, s.observed.upstreams):
        return "False", "WaitingForInputs", "no room is looked for before the models of other jobs are there"
    bound = [slot for slot in s.slots if slot in s.pods and s.pods[slot].node and not s.pods[slot].finished]
    if len(bound) == s.resolved.slots and phase not in (GangPhase.WAITING, GangPhase.FENCING):
        return "True", "GangScheduled", f"{len(bound)} of {s.resolved.slots} pods are on nodes"
    lacking = room.shortage(s)
    if lacking is not None:
        return "False", lacking[0], lacking[1]
    if s.observed.obstacle is not None:
        return "False", s.observed.obstacle.reason, s.observed.obstacle.message
    held = [s.pods[slot] for slot in s.slots if slot in s.pods and s.pods[slot].gated]
    if held:
        gates = ", ".join(sorted({gate for pod in held for gate in pod.gated}))
        return "False", "SchedulingGated", f"{len(held)} of {s.resolved.slots} pods are held by {gates}"
    pending = [s.pods[slot].unschedulable for slot in s.slots if slot in s.pods and s.pods[slot].unschedulable]
    message = f"{len(bound)} of {s.resolved.slots} pods are on nodes"
    return "False", "PodsPending", f"{message}; {pending[0]}" if pending else message


def _running(status: JobStatus, s: Situation | None) -> Finding:
    phase = status.gang.phase
    if s is None or status.gang.attempt == 0:
        return "False", "NotStarted", ""
    if phase == GangPhase.FINISHED:
        return "False", "Finished", ""
    if phase in (GangPhase.STOPPED, GangPhase.WAITING):
        return "False", phase.value, ""
    refusing = [slot for slot in s.slots if (contact := s.contact(slot)) is not None and contact.key_refused]
    refusal = f"; agents of slots {', '.join(map(str, refusing))} refuse the operator's key" if refusing else ""
    if phase not in (GangPhase.RUNNING, GangPhase.DRAINING) or status.gang.attempt != s.gang.attempt:
        return "False", phase.value, f"attempt {status.gang.attempt} is {phase.value.lower()}{refusal}"
    alive = sum(r.ranks_alive for r in s.current_reports() if r.state == AgentState.RUNNING)
    world = s.resolved.slots * s.resolved.ranks_per_slot
    silent = [slot for slot in s.slots if s.silent_seconds(slot) > s.timeouts.contact_timeout_seconds]
    text = f"attempt {status.gang.attempt}: {alive} of {world} ranks alive"
    if silent:
        unseen = "; nodes cannot be seen, so agents and pods alone decide" if s.observed.nodes is None else ""
        return "Unknown", "AgentsSilent", f"{text}; no answer from slots {', '.join(map(str, silent))}{unseen}"
    if refusing:
        return "Unknown", "KeyRefused", f"{text}{refusal}"
    if phase == GangPhase.DRAINING:
        return "True", "Draining", f"{text}; saving because of {status.gang.drain_cause}"
    resumed_at = status.gang.resume_from.step if status.gang.resume_from else 0
    if status.progress is None or status.progress.step <= resumed_at:
        old = status.condition(ConditionType.RUNNING)
        if old is None or old.status != "True":
            return "False", "RanksStarting", text
    return "True", "RanksRunning", text


def _restarting(status: JobStatus) -> Finding:
    gang = status.gang
    if gang.phase in (GangPhase.FINISHED, GangPhase.STOPPED):
        return "False", gang.phase.value, ""
    if gang.cause in UNPLANNED:
        return "False", "NoRestart", ""
    resumed_at = gang.resume_from.step if gang.resume_from else 0
    running = gang.phase in (GangPhase.RUNNING, GangPhase.DRAINING)
    if running and status.progress is not None and status.progress.step > resumed_at:
        return "False", "Restarted", f"attempt {gang.attempt} resumed at step {resumed_at} after {gang.cause}"
    message = status.failure.message if status.failure else ""
    return "True", gang.cause, f"attempt {gang.attempt} is {gang.phase.value.lower()}; {message}"


def _checkpoint(status: JobStatus, observed: Observed) -> Finding:
    saved = status.checkpoint
    age = f"{observed.now - saved.committed_at.timestamp():.0f} s old" if saved.committed_at else "none committed yet"
    last = f"last checkpoint is of step {saved.step}, {age}" if saved.step is not None else age
    if saved.failing_reason is not None:
        return "False", saved.failing_reason, f"{saved.failing_message or 'saves fail'}; {last}"
    if saved.step is None:
        return "Unknown", "NoCheckpointYet", ""
    return "True", "Committed", f"checkpoint of step {saved.step}"


def _suspended(status: JobStatus, observed: Observed) -> Finding:
    if status.gang.phase == GangPhase.STOPPED:
        left, lost = len(observed.pods), progress.unsaved(status) or ""
        return ("True", "Suspended", lost) if left == 0 else ("False", "Suspending", f"{left} pods are left")
    return "False", "NotSuspended", ""
