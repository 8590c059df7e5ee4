"""Raising the attempt after a fault, or ending the job when restarting cannot help."""

import re
from collections.abc import Sequence

from trireme.resources.common import Budgets
from trireme.resources.status import (
    CauseCount,
    ConditionType,
    FailureStatus,
    GangPhase,
    GangStatus,
    JobStatus,
    NodeRecord,
    RestartRecord,
    RestartsStatus,
)
from trireme_operator.decide import conditions, exclusion, faults, retelling, timekeeping
from trireme_operator.decide.faults import Budget, Cause, Fault
from trireme_operator.decide.model import JobEvent, to_time
from trireme_operator.decide.situation import Situation

HISTORY = 20
MAX_BACKOFF_SECONDS = 60.0


def after_fault(s: Situation, fault: Fault) -> tuple[JobStatus, tuple[JobEvent, ...]]:
    """The status after a fault: the next attempt, or the job's end."""
    status = s.status.model_copy(update={"failure": describe(s, fault)})
    verdict = _hopeless(s, fault)
    if verdict is not None:
        reason, message = verdict
        return fail(s, reason, message, status=status)
    restarts = charge(s, fault)
    status = status.model_copy(update={"restarts": restarts})
    backoff = backoff_seconds(restarts.fruitless, fault)
    records = blame(s, fault)
    return raise_attempt(s, fault.cause, fault.message, status=status, backoff_seconds=backoff, node_records=records)


def raise_attempt(
    s: Situation,
    cause: Cause,
    message: str,
    *,
    status: JobStatus | None = None,
    backoff_seconds: float = 0.0,
    node_records: Sequence[NodeRecord] | None = None,
) -> tuple[JobStatus, tuple[JobEvent, ...]]:
    """The status of the next attempt, whose first phase is to fence the one before."""
    status = status or s.status
    gang = status.gang
    raised = GangStatus(
        attempt=gang.attempt + 1,
        phase=GangPhase.FENCING,
        phase_since=to_time(s.now),
        cause=cause.value,
        slots=gang.slots,
        recompute_until_step=status.progress.highest_step if status.progress else 0,
        not_before=to_time(s.now + backoff_seconds) if backoff_seconds > 0 else None,
        node_records=gang.node_records if node_records is None else list(node_records),
    )
    if cause == Cause.RESUMED:  # whoever suspended the job may have mended what it failed of
        status = status.model_copy(update={"restarts": status.restarts.model_copy(update={"last_exception": None})})
    events = [retelling.attempt_raised(gang.attempt + 1, cause.value, message)]
    if cause == Cause.NODE_LOST:
        events.insert(0, JobEvent("Warning", "NodeLost", message))
    time = timekeeping.new_attempt(status.time)
    if (record := timekeeping.unrecovered(s.status)) is not None:
        time = timekeeping.attribute(time, record, s.now)
    return status.model_copy(update={"gang": raised, "time": time}), tuple(events)


def fail(
    s: Situation, reason: str, message: str, *, status: JobStatus | None = None
) -> tuple[JobStatus, tuple[JobEvent, ...]]:
    """The status of a job that has failed for good."""
    status = status or s.status
    failure = status.failure
    if failure is None or failure.attempt != status.gang.attempt:
        failure = FailureStatus(cause=reason, attempt=status.gang.attempt, message=message[:4096], at=to_time(s.now))
    gang = status.gang.model_copy(update={"phase": GangPhase.FINISHED, "phase_since": to_time(s.now)})
    ended = status.model_copy(update={"failure": failure, "gang": gang, "completion_time": to_time(s.now)})
    ended = conditions.put(ended, s.observed, ConditionType.FAILED, "True", reason, message)
    return ended, (retelling.job_failed(reason, message),)


def describe(s: Situation, fault: Fault) -> FailureStatus:
    """The culprit as users see it."""
    failure = fault.failure
    return FailureStatus(
        cause=fault.cause.value,
        attempt=s.gang.attempt,
        rank=failure.rank if failure else None,
        slot=fault.slot,
        node=fault.node,
        step=failure.step if failure else (s.status.progress.step if s.status.progress else None),
        exception=failure.exception if failure else None,
        message=fault.message[:4096],
        exit_code=failure.exit_code if failure else fault.exit_code,
        signal=failure.signal if failure else None,
        traceback_tail=(failure.traceback_tail if failure else "")[-8192:],
        at=to_time(s.now),
    )


def _hopeless(s: Situation, fault: Fault) -> tuple[str, str] | None:
    """Why another attempt would end the same way, or is not allowed."""
    if fault.cause == Cause.NAN_LOSS:
        return "NaNLoss", fault.message
    key = _signature(s, fault)
    if key is not None and key == s.status.restarts.last_exception:
        return "DeterministicFailure", f"the same failure came twice at the same place: {fault.message}"
    budget = fault.budget
    if budget is None:
        return None
    used, allowed = spent(s.status.restarts, budget), limit(s.spec.fault_tolerance.budgets, budget)
    if used >= allowed:
        name = {
            Budget.APPLICATION: "ApplicationBudgetExhausted",
            Budget.OUT_OF_MEMORY: "OutOfMemoryBudgetExhausted",
            Budget.HANG: "HangBudgetExhausted",
            Budget.INFRASTRUCTURE: "InfrastructureBudgetExhausted",
        }[budget]
        return name, f"{used} of {allowed} restarts used, then {fault.cause.value}: {fault.message}"
    return None


def _signature(s: Situation, fault: Fault) -> str | None:
    """What makes two failures the same: exception, exit code or signal, and the step or what was to be restored."""
    if fault.failure is None or fault.cause not in (
        Cause.EXCEPTION,
        Cause.EXIT,
        Cause.CRASHED,
        Cause.RESTORE,
    ):
        return None
    where = f"step {fault.failure.step}"
    if fault.cause == Cause.RESTORE:
        if fault.failure.exception is None:  # what it waited for did not come: the next attempt may find it there
            return None
        where = f"restore of {s.gang.resume_from.uri if s.gang.resume_from else 'the start'}"
    ended = f"exit code {fault.failure.exit_code}"
    if fault.failure.signal is not None:
        ended = f"signal {fault.failure.signal}"
    what = fault.failure.exception or ended
    return f"{what} at {where}: {_VARYING.sub('#', fault.failure.message)}"[:4096]


_VARYING = re.compile(r"\S*/\S*|[\w-]*\d[\w-]*")
"""Paths, and words with digits (addresses, ports, times, ids): they do not make another failure of it."""
_AT_STEP = re.compile(r" at step (\d+): ")


def _last_failure(s: Situation, fault: Fault, step: int | None) -> str | None:
    """What the next failure is compared with, after an attempt that completed `step`, or none.

    What is not the application's doing says nothing about the failure before it, unless it came after the place where
    that one would have come again. One without a step, at the start, would have come before the first.
    """
    own, last = _signature(s, fault), s.status.restarts.last_exception
    if own is not None or last is None or fault.budget not in (None, Budget.INFRASTRUCTURE):
        return own
    match = _AT_STEP.search(last)
    passed = step is not None and step >= (int(match[1]) if match else 0)
    return None if passed else last


def spent(restarts: RestartsStatus, budget: Budget) -> int:
    """Restarts already charged to a budget."""
    return {
        Budget.APPLICATION: restarts.application,
        Budget.OUT_OF_MEMORY: restarts.out_of_memory,
        Budget.HANG: restarts.hang,
        Budget.INFRASTRUCTURE: restarts.infrastructure,
    }[budget]


def limit(budgets: Budgets, budget: Budget) -> int:
    """Restarts that a budget allows."""
    return {
        Budget.APPLICATION: budgets.application,
        Budget.OUT_OF_MEMORY: budgets.out_of_memory,
        Budget.HANG: budgets.hang,
        Budget.INFRASTRUCTURE: budgets.infrastructure,
    }[budget]


_COUNTERS = {
    Budget.APPLICATION: "application",
    Budget.OUT_OF_MEMORY: "out_of_memory",
    Budget.HANG: "hang",
    Budget.INFRASTRUCTURE: "infrastructure",
}


def charge(s: Situation, fault: Fault) -> RestartsStatus:
    """The restarts with this one counted; one that is charged to nobody is no fault, and counts only by its cause."""
    restarts, progress = s.status.restarts, s.status.progress
    counts = {c.cause: c.count for c in restarts.by_cause}
    counts[fault.cause.value] = counts.get(fault.cause.value, 0) + 1
    resumed_at = s.gang.resume_from.step if s.gang.resume_from else 0
    advanced = (
        progress is not None and s.gang.phase in (GangPhase.RUNNING, GangPhase.DRAINING) and progress.step > resumed_at
    )
    record = RestartRecord(
        attempt=s.gang.attempt,
        cause=fault.cause.value,
        node=fault.node,
        slot=fault.slot,
        rank=fault.failure.rank if fault.failure else None,
        step=progress.step if progress else 0,
        last_contact_at=to_time(fault.began),
        raised_at=to_time(s.now),
        lost_before=timekeeping.up_to(s.status.time, s.now).lost(),
    )
    fault_count = 0 if fault.budget is None else 1
    update: dict[str, object] = {
        "total": restarts.total + fault_count,
        "by_cause": [CauseCount(cause=cause, count=n) for cause, n in sorted(counts.items())],
        "history": [*restarts.history, record][-HISTORY:],
        "fruitless": 0 if advanced else restarts.fruitless + fault_count,
        "last_exception": _last_failure(s, fault, progress.step if progress and advanced else None),
    }
    if fault.budget is not None:
        name = _COUNTERS[fault.budget]
        update[name] = getattr(restarts, name) + 1
    return restarts.model_copy(update=update)


def backoff_seconds(fruitless: int, fault: Fault) -> float:
    """Wait before the next attempt: none after real progress, then 1, 2, 4, ... seconds up to a minute."""
    if fruitless <= 1 or fault.cause == Cause.PREEMPTION:
        return 0.0
    return min(MAX_BACKOFF_SECONDS, float(2 ** min(fruitless - 2, 10)))


_NODE_CAUSES = frozenset(
    {
        Cause.KILLED,
        Cause.HANG,
        Cause.DEVICE,
        Cause.LOCAL_DISK,
        Cause.POD_FAILED,
        Cause.NODE_LOST,
        Cause.AGENT_LOST,
        Cause.NOT_STARTED,
    }
)


def blame(s: Situation, fault: Fault) -> list[NodeRecord]:
    """Node records with this fault; a node with too many of them is excluded from the job."""
    records = s.gang.node_records
    if fault.node is None or fault.cause not in _NODE_CAUSES or (fault.cause == Cause.HANG and faults.gang_wide(s)):
        return records
    reason = f"{fault.cause.value}: {fault.message}"
    exclude = fault.cause == Cause.NOT_STARTED  # it would have the next pod wait as long
    return exclusion.noted(records, fault.node, reason, s.now, s.observed.policy, exclude=exclude)
