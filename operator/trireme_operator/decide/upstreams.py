"""Waiting for the models of other jobs, and recording which they were.

A model is recorded once, with its digest; from then on the job that made it may be deleted or be created anew.
"""

from collections.abc import Iterable

from trireme.resources.status import GangPhase, InputStatus, JobState
from trireme_operator.decide.model import JobEvent, Upstream, to_time
from trireme_operator.decide.situation import Situation
from trireme_operator.decide.stages import Step, enter


def outstanding(inputs: Iterable[InputStatus], upstreams: Iterable[Upstream]) -> tuple[Upstream, ...]:
    """Those jobs whose models are not recorded yet."""
    recorded = {known.field for known in inputs if known.digest}
    return tuple(upstream for upstream in upstreams if upstream.field not in recorded)


def advance(s: Situation) -> Step | None:
    """Record what is newly known of the jobs that are waited for; None when nothing is."""
    inputs, events = recorded(s.status.inputs, s.observed.upstreams, s.now)
    if inputs == s.status.inputs:
        return None
    status = s.status.model_copy(update={"inputs": inputs})
    if not outstanding(inputs, s.observed.upstreams):
        status = enter(s, GangPhase.WAITING, status)  # from now on it waits for room
    return status, events


def recorded(
    inputs: list[InputStatus], upstreams: tuple[Upstream, ...], now: float
) -> tuple[list[InputStatus], tuple[JobEvent, ...]]:
    """What is recorded, with what is newly known of the jobs whose models are not."""
    found, events = {known.field: known for known in inputs}, []
    for upstream in outstanding(inputs, upstreams):
        entry = _entry(upstream, now)
        if entry is None or entry == found.get(upstream.field):
            continue
        found[upstream.field] = entry
        if entry.digest:
            message = f"{upstream.reference}: model {entry.uri}, digest {entry.digest}"
            events.append(JobEvent("Normal", "InputRecorded", message))
    return list(found.values()), tuple(events)


def _entry(upstream: Upstream, now: float) -> InputStatus | None:
    """What to record of a job. One that was created anew under its name takes the place of the one before."""
    job, reference = upstream.found, upstream.reference
    if job is None:
        return None
    entry = InputStatus(field=upstream.field, kind=reference.kind, name=reference.name, uid=job.uid)
    if job.state != JobState.SUCCEEDED or job.model is None:
        return entry
    return entry.model_copy(update={"uri": job.model.uri, "digest": job.model.digest, "at": to_time(now)})


def finding(inputs: Iterable[InputStatus], upstreams: Iterable[Upstream]) -> tuple[str, str] | None:
    """Reason and message of what is waited for; None when every model is recorded. What is in the way comes first."""
    known = list(inputs)
    seen = {entry.field for entry in known}
    found = [_verdict(upstream, upstream.field in seen) for upstream in outstanding(known, upstreams)]
    return min(found, key=lambda verdict: verdict[0] == "WaitingForUpstream", default=None)


def _verdict(upstream: Upstream, seen: bool) -> tuple[str, str]:
    job, where = upstream.found, f"spec.{upstream.field}: {upstream.reference}"
    if job is None:
        if seen:
            return "UpstreamDeleted", f"{where} was deleted before it had a model; goes on when it is created again"
        return "WaitingForUpstream", f"{where} does not exist yet"
    if job.state == JobState.FAILED:
        return "UpstreamFailed", f"{where} failed: {job.failure}; goes on when it is created again and succeeds"
    if job.deleting and job.state != JobState.SUCCEEDED:
        return "UpstreamDeleted", f"{where} is being deleted; goes on when it is created again"
    if job.state == JobState.REJECTED:
        return "UpstreamFailed", f"{where} was rejected: {job.failure}; goes on when it is corrected and succeeds"
    return "WaitingForUpstream", f"{where} is {job.state.value}"
