"""How a job enters another stage."""

from trireme.protocol import Report
from trireme.resources.status import ConditionType, GangPhase, GangStatus, JobStatus, ModelStatus
from trireme_operator.decide import conditions, retelling
from trireme_operator.decide.model import JobEvent, to_time
from trireme_operator.decide.situation import Situation

Step = tuple[JobStatus, tuple[JobEvent, ...]]
"""A status to write because the job enters a new stage, with its events."""


def enter(s: Situation, phase: GangPhase, status: JobStatus | None = None, **update: object) -> JobStatus:
    """`status` with the gang in another phase."""
    status = status or s.status
    gang: GangStatus = status.gang.model_copy(update={"phase": phase, "phase_since": to_time(s.now), **update})
    return status.model_copy(update={"gang": gang})


def succeed(s: Situation, report: Report) -> Step:
    """The status of a job that has reached its end."""
    assert report.model is not None
    status = s.status.model_copy(
        update={"model": ModelStatus(**report.model.model_dump()), "completion_time": to_time(s.now), "failure": None}
    )
    status = enter(s, GangPhase.FINISHED, status)
    message = f"model {report.model.uri}"
    status = conditions.put(status, s.observed, ConditionType.SUCCEEDED, "True", "ModelExported", message)
    return status, (retelling.job_succeeded(report.model.uri),)
