"""Training facts and checkpoints from the agents' reports into status."""

from trireme.protocol import AgentState, CheckpointReport, Report
from trireme.resources.status import (
    CheckpointStatus,
    GangPhase,
    GangStatus,
    JobStatus,
    ProgressStatus,
    RestartsStatus,
)
from trireme_operator.decide import timekeeping
from trireme_operator.decide.model import JobEvent, to_time
from trireme_operator.decide.situation import Situation

RUN_PHASES = (GangPhase.RUNNING, GangPhase.DRAINING)


def leading_report(s: Situation) -> Report | None:
    """The report whose facts count: slot 0's, or that of another slot while slot 0 has none of this attempt."""
    return next((r for r in s.current_reports() if r.progress is not None), s.current(0))


def absorb(s: Situation, status: JobStatus) -> JobStatus:
    """`status` with what the agents of the running attempt report."""
    if status.gang.phase not in RUN_PHASES:
        return status
    report = leading_report(s)
    if report is None:
        return status
    status = status.model_copy(
        update={
            "progress": _progress(s, report, status.progress),
            "checkpoint": _checkpoint(s, status.checkpoint),
            "time": timekeeping.take_reported(status.time, s.now, report.seconds_by_category),
        }
    )
    restarts = _timeline(s, status.restarts, status.gang, status.progress, report.attempt)
    record, time = timekeeping.unrecovered(status), status.time
    status = status.model_copy(update={"restarts": restarts})
    if record is not None and timekeeping.unrecovered(status) is None:
        time = timekeeping.attribute(time, record, s.now)
    return status.model_copy(update={"time": time})


def _progress(s: Situation, report: Report, old: ProgressStatus | None) -> ProgressStatus | None:
    new = report.progress
    if new is None:
        return old
    eta = new.step_seconds * (new.total_steps - new.step) if new.step_seconds else None
    facts = new.model_dump()
    first = new.first_loss if new.first_loss is not None else (old.first_loss if old else None)
    validation = new.validation_loss if new.validation_loss is not None else (old.validation_loss if old else None)
    contact = s.contact(report.slot)
    return ProgressStatus(
        **{
            **facts,
            # Print columns show every digit; logs and metrics have the rest of them.
            "loss": _rounded(new.loss),
            "first_loss": _rounded(first),
            "validation_loss": _rounded(validation),
            "percent": f"{100 * new.step // max(1, new.total_steps)}%",
            "eta_seconds": eta,
            "highest_step": max(new.step, old.highest_step if old else 0),
            "updated_at": to_time(contact.last if contact and contact.last else s.now),
        }
    )


def _rounded(loss: float | None) -> float | None:
    return None if loss is None else round(loss, 4)


def _checkpoint(s: Situation, old: CheckpointStatus) -> CheckpointStatus:
    """Slot 0 knows the saves of its attempt; a commit that was once recorded is only ever replaced by a newer one."""
    report = s.current(0)
    if report is None:
        return old
    saves: CheckpointReport = report.checkpoint
    update: dict[str, object] = {
        "failing_reason": saves.failing_reason,
        "failing_message": (saves.failing_message or "")[:4096] or None,
    }
    fact = saves.last_committed
    if fact is not None and fact.uri != old.uri:
        known = {f.uri for f in saves.committed} | {fact.uri}
        contact = s.contact(0)
        seen_at = contact.last if contact and contact.last else s.now
        fresh = len([f for f in known if not _older_or_same(f, saves, old)])
        update |= {
            "step": fact.step,
            "uri": fact.uri,
            "manifest_digest": fact.manifest_digest,
            "attempt": report.attempt,
            "committed_at": to_time(seen_at - fact.seconds_ago),
            "bytes": fact.bytes,
            "verified": False,
            "committed_count": old.committed_count + max(1, fresh),
            "upload_seconds": fact.upload_seconds,
            "stall_seconds": fact.stall_seconds,
        }
    return old.model_copy(update=update)


def _older_or_same(uri: str, saves: CheckpointReport, old: CheckpointStatus) -> bool:
    """Whether a commit of this attempt had been counted when `old` was recorded."""
    step = next((f.step for f in saves.committed if f.uri == uri), None)
    return (
        step is not None and old.uri in {f.uri for f in saves.committed} and old.step is not None and step <= old.step
    )


def _timeline(
    s: Situation, restarts: RestartsStatus, gang: GangStatus, progress: ProgressStatus | None, attempt: int
) -> RestartsStatus:
    """Note in the newest restart's record when the attempt after it made its first step, and when it caught up."""
    if not restarts.history or progress is None:
        return restarts
    record = restarts.history[-1]
    resumed_at = gang.resume_from.step if gang.resume_from else 0
    update: dict[str, object] = {}
    if record.attempt + 1 != attempt:
        return restarts
    if record.first_step_at is None and progress.step > resumed_at:
        update["first_step_at"] = to_time(s.now)
    if record.caught_up_at is None and progress.step > record.step:
        update["caught_up_at"] = to_time(s.now)
    if not update:
        return restarts
    return restarts.model_copy(update={"history": [*restarts.history[:-1], record.model_copy(update=update)]})


def stamp(restarts: RestartsStatus, attempt: int, **times: object) -> RestartsStatus:
    """Note times (or the resume step) in the record of the restart that led to `attempt`."""
    if not restarts.history or restarts.history[-1].attempt + 1 != attempt:
        return restarts
    record = restarts.history[-1].model_copy(update=times)
    return restarts.model_copy(update={"history": [*restarts.history[:-1], record]})


def checkpoint_events(old: CheckpointStatus, new: CheckpointStatus) -> tuple[JobEvent, ...]:
    """Events for what changed about checkpoints."""
    events = []
    if new.uri is not None and new.uri != old.uri:
        size = f"{(new.bytes or 0) / 1e6:.1f} MB"
        events.append(JobEvent("Normal", "CheckpointCommitted", f"checkpoint of step {new.step} committed, {size}"))
    if new.failing_reason is not None and new.failing_reason != old.failing_reason:
        message = f"{new.failing_reason}: {new.failing_message or 'saves fail'}"
        events.append(JobEvent("Warning", "CheckpointFailing", message))
    if new.failing_reason is None and old.failing_reason is not None:
        events.append(JobEvent("Normal", "CheckpointRecovered", "saves work again"))
    return tuple(events)


def unsaved(status: JobStatus) -> str | None:
    """What of the training is in no checkpoint that is known of, for people; None when nothing is."""
    reached, saved = status.progress.step if status.progress else 0, status.checkpoint.step
    if reached <= (saved or 0):
        return None
    newest = "no checkpoint is known" if saved is None else f"the newest checkpoint known is of step {saved}"
    return f"step {reached} was reached, {newest}"


def succeeded(s: Situation) -> Report | None:
    """Slot 0's report when the job has reached its end and the model is exported."""
    report = s.current(0)
    if report is None or report.state != AgentState.SUCCEEDED or report.model is None:
        return None
    return report
