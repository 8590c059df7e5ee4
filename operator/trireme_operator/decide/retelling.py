"""Events that the stored status implies, so that one lost between the status write and its record is told later."""

from trireme.resources.status import ConditionType, GangPhase, GangStatus, JobStatus, RejectedStatus, ResumeFrom
from trireme_operator.decide.faults import Cause
from trireme_operator.decide.model import JobEvent, seconds_since

RETOLD_SECONDS = 600.0
"""Older stages are not told again: events end after an hour, and then old ones would look new."""


def attempt_raised(attempt: int, cause: str, message: str) -> JobEvent:
    """The event of a raised attempt."""
    planned = cause in (Cause.RESUMED, Cause.PREEMPTION)
    return JobEvent(
        "Normal" if planned else "Warning", "AttemptRaised", f"attempt {attempt} raised: {cause}: {message}"
    )


def resume_point_recorded(attempt: int, point: ResumeFrom | None) -> JobEvent:
    """The event of a recorded resume point."""
    where = f"step {point.step}, {point.uri}" if point else "step 0, no checkpoint exists"
    return JobEvent("Normal", "ResumePointRecorded", f"attempt {attempt} starts at {where}")


def checkpoint_rejected(rejected: RejectedStatus) -> JobEvent:
    """The event of a checkpoint that did not verify."""
    return JobEvent("Warning", "CheckpointRejected", f"{rejected.uri}: {rejected.reason}: {rejected.file}")


def job_failed(reason: str, message: str) -> JobEvent:
    """The event of a job that has failed for good."""
    return JobEvent("Warning", "JobFailed", f"{reason}: {message}")


def job_succeeded(uri: str) -> JobEvent:
    """The event of a job that has reached its end."""
    return JobEvent("Normal", "JobSucceeded", f"model {uri}")


def stage_events(status: JobStatus, now: float) -> tuple[JobEvent, ...]:
    """The events with which the present stage began; none when that is long ago."""
    gang = status.gang
    if gang.phase_since is None or seconds_since(gang.phase_since, now) > RETOLD_SECONDS:
        return ()
    if gang.phase == GangPhase.FENCING:
        return _raised(status, gang)
    if gang.phase == GangPhase.RUNNING:
        rejected = status.checkpoint.rejected
        mine = rejected is not None and rejected.attempt == gang.attempt
        told = (checkpoint_rejected(rejected),) if rejected is not None and mine else ()
        return (*told, resume_point_recorded(gang.attempt, gang.resume_from))
    if gang.phase == GangPhase.FINISHED:
        failed = status.condition(ConditionType.FAILED)
        if failed is not None and failed.status == "True":
            return (job_failed(failed.reason, failed.message),)
        return (job_succeeded(status.model.uri),) if status.model is not None else ()
    return ()


def _raised(status: JobStatus, gang: GangStatus) -> tuple[JobEvent, ...]:
    failure = status.failure
    if failure is None or failure.attempt != gang.attempt - 1 or failure.cause != gang.cause:
        return ()
    told = attempt_raised(gang.attempt, gang.cause, failure.message)
    return (JobEvent("Warning", "NodeLost", failure.message), told) if gang.cause == Cause.NODE_LOST else (told,)
