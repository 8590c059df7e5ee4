"""The life of an attempt: fence, form, prepare, record the resume point, run, drain."""

from collections.abc import Iterator

from trireme.protocol import AgentState, Phase, ProposedResume, Report
from trireme.resources.status import (
    DatasetStatus,
    GangPhase,
    MemoryStatus,
    ParametersStatus,
    ProgressStatus,
    RejectedStatus,
    ResumeFrom,
    SlotStatus,
)
from trireme_operator.decide import draining, exclusion, faults, progress, restarts, retelling, room, upstreams
from trireme_operator.decide.faults import Cause
from trireme_operator.decide.model import JobEvent, seconds_since, to_time
from trireme_operator.decide.situation import PHASES, Situation
from trireme_operator.decide.stages import Step, enter, succeed


def advance(s: Situation) -> Step | None:
    """The next stage of an accepted job that is not finished, or None while it stays where it is."""
    deadline = _active_deadline(s)
    if deadline is not None:
        return deadline
    behind = _behind(s)
    if behind is not None:
        return behind
    outstayed = _outstayed(s)
    if outstayed is not None:
        return outstayed
    stages = {
        GangPhase.WAITING: _waiting,
        GangPhase.FENCING: _fencing,
        GangPhase.FORMING: _forming,
        GangPhase.PREPARING: _preparing,
        GangPhase.RUNNING: _running,
        GangPhase.DRAINING: draining.draining,
        GangPhase.STOPPED: _stopped,
    }
    stage = stages.get(s.gang.phase)
    return stage(s) if stage else None


def _active_deadline(s: Situation) -> Step | None:
    limit, start = s.spec.active_deadline_seconds, s.status.start_time
    if limit is None or start is None or upstreams.outstanding(s.status.inputs, s.observed.upstreams):
        return None
    # How long other jobs take for their models is not this one's time.
    start = max([start, *(known.at for known in s.status.inputs if known.at is not None)])
    active = seconds_since(start, s.now) - s.status.time.seconds.suspended
    if s.gang.phase == GangPhase.STOPPED or active <= limit:
        return None
    return restarts.fail(s, "DeadlineExceeded", f"active for {active:.0f} s, activeDeadlineSeconds is {limit}")


def _behind(s: Situation) -> Step | None:
    """An attempt went further than status knows, for example because the cluster's store was set back to a backup.

    When it is only what we saw that is old, the write of this status is refused, and we look again.
    """
    if s.gang.phase not in PHASES or s.gang.phase == GangPhase.FINISHED:
        return None
    newest, message = max(_unknown_attempts(s), default=(0, ""))
    if not newest:
        return None
    # Whatever the agents run must be fenced, in the pods that are there now.
    slots = [
        _slot_status(s, slot) if slot in s.pods else s.records[slot]
        for slot in s.slots
        if slot in s.pods or slot in s.records
    ]
    gang = s.gang.model_copy(update={"attempt": newest, "slots": slots})
    return restarts.raise_attempt(s, Cause.STATUS_LOST, message, status=s.status.model_copy(update={"gang": gang}))


def _unknown_attempts(s: Situation) -> Iterator[tuple[int, str]]:
    """Attempts that agents hold, or that left something in the store, and that status says have not begun."""
    ours = s.gang.attempt
    ranks_started = s.gang.phase in progress.RUN_PHASES
    for report in (report for slot in s.slots if (report := s.report(slot)) is not None):
        ahead = report.attempt == ours and not ranks_started and report.phase in (Phase.RUN, Phase.DRAIN)
        if report.attempt > ours or ahead:
            yield report.attempt, f"agents hold attempt {report.attempt}, the stored status is of attempt {ours}"
    prepared = s.current(0)
    problem = prepared.inputs_problem if prepared is not None else None
    if problem is not None and problem.attempt_in_store is not None and not ranks_started:
        yield max(ours, problem.attempt_in_store), f"the store knows more than the stored status: {problem.message}"


def _outstayed(s: Situation) -> Step | None:
    """Before a pod that does not go is removed by force, its node is noted: what runs there may still hold devices."""
    if s.gang.phase not in (GangPhase.WAITING, GangPhase.FENCING, GangPhase.FORMING, GangPhase.STOPPED):
        return None
    times = {r.node: r.at.timestamp() for r in s.gang.node_records if r.excluded and r.at is not None}
    for pod in s.observed.pods:
        if pod.node is None or pod.delete_by is None or not room.stuck(s, pod):
            continue
        if s.observed.node_down(pod.node) is True or times.get(pod.node, 0.0) > pod.delete_by:
            continue
        late = s.now - pod.delete_by
        message = f"pod {pod.name} is still there {late:.0f} s after its grace ended: removed by force"
        records = exclusion.noted(s.gang.node_records, pod.node, message, s.now, s.observed.policy, exclude=True)
        status = s.status.model_copy(update={"gang": s.gang.model_copy(update={"node_records": records})})
        return status, (JobEvent("Warning", "PodStuck", f"{message}, node {pod.node} is avoided"),)
    return None


def _suspend_now(s: Situation) -> Step | None:
    """In phases without ranks a suspended job just gives its pods back."""
    if not s.spec.suspend:
        return None
    return enter(s, GangPhase.STOPPED), (JobEvent("Normal", "Suspended", "pods are given back"),)


def _backing_off(s: Situation) -> bool:
    return s.gang.not_before is not None and s.now < s.gang.not_before.timestamp()


def _waiting(s: Situation) -> Step | None:
    """No pods; wait for other jobs' models, then until the whole gang fits, or until it is the scheduler's or an
    autoscaler's turn to find room."""
    suspended = _suspend_now(s)
    if suspended is not None:
        return suspended
    news = upstreams.advance(s)
    if news is not None:
        return news
    if s.pods or _backing_off(s) or upstreams.outstanding(s.status.inputs, s.observed.upstreams):
        return None
    unseen = not room.left_to_scheduler(s) and room.shortage(s) is not None
    if unseen and seconds_since(s.gang.phase_since, s.now) <= s.timeouts.scheduling_timeout_seconds:
        return None
    attempt = max(1, s.gang.attempt)
    slots = [SlotStatus(index=slot, pod=f"{s.observed.job.name}-{slot}") for slot in s.slots]
    status = enter(
        s,
        GangPhase.FORMING,
        attempt=attempt,
        cause=s.gang.cause or Cause.CREATED.value,
        slots=slots,
        not_before=None,
        scheduling_since=to_time(s.now),
        room_unseen=unseen,
    )
    message = f"attempt {attempt}: {s.resolved.slots} pods with {s.resolved.ranks_per_slot} ranks each"
    return status, (JobEvent("Normal", "GangForming", message),)


def _fencing(s: Situation) -> Step | None:
    """Nothing of the new attempt starts before no rank of the old one can commit."""
    suspended = _suspend_now(s)
    if suspended is not None:
        return suspended
    ended = any(pod.finished or room.never_started(s, slot) for slot, pod in s.pods.items())
    if ended or not all(s.fenced(slot) for slot in s.slots):
        return None  # pods that ended are deleted first, so that one that ends while forming is known to be a new fault
    slots = [SlotStatus(index=slot, pod=f"{s.observed.job.name}-{slot}") for slot in s.slots]
    status = s.status.model_copy(
        update={"restarts": progress.stamp(s.status.restarts, s.gang.attempt, fenced_at=to_time(s.now))}
    )
    if not s.pods:
        return enter(s, GangPhase.WAITING, status, slots=slots), ()
    status = enter(s, GangPhase.FORMING, status, slots=slots, scheduling_since=to_time(s.now))
    return status, (JobEvent("Normal", "GangForming", f"attempt {s.gang.attempt}: the one before is fenced"),)


def _forming(s: Situation) -> Step | None:
    """Pods are created or replaced until all agents hold the attempt."""
    suspended = _suspend_now(s)
    if suspended is not None:
        return suspended
    for slot in s.slots:
        pod = s.pods.get(slot)
        if pod is not None and pod.finished and not draining.leaving(s, slot) and not room.refusal_unclear(s, pod):
            return restarts.after_fault(s, faults.of_pod(s, pod, s.now))
        if pod is not None and room.never_started(s, slot):
            return restarts.after_fault(s, faults.not_started(s, pod))
    if all(_ready(s, slot) for slot in s.slots):
        slots = [_slot_status(s, slot) for slot in s.slots]
        status = s.status.model_copy(
            update={"restarts": progress.stamp(s.status.restarts, s.gang.attempt, ready_at=to_time(s.now))}
        )
        status = enter(
            s, GangPhase.PREPARING, status, slots=slots, scheduling_since=None, not_before=None, room_unseen=False
        )
        return status, (JobEvent("Normal", "GangReady", f"all {len(slots)} agents hold attempt {s.gang.attempt}"),)
    return _scheduling_deadline(s)


def _scheduling_deadline(s: Situation) -> Step | None:
    """A gang that cannot get all its nodes gives back those it has, so that another can finish.

    While a queue holds one of its pods by a gate, that is the queue's to do: the time counts from when none is held.
    """
    unbound = [slot for slot in s.slots if slot not in s.pods or s.pods[slot].node is None]
    if not unbound:
        return None
    gated = any(pod.gated for pod in s.pods.values())
    if gated or s.gang.scheduling_since is None:
        since = None if gated else to_time(s.now)
        gang = s.gang.model_copy(update={"scheduling_since": since})
        return (s.status.model_copy(update={"gang": gang}), ()) if gang != s.gang else None
    waited, limit = seconds_since(s.gang.scheduling_since, s.now), s.timeouts.scheduling_timeout_seconds
    if waited <= limit:
        return None
    tries = s.gang.scheduling_tries + 1
    delay = room.retry_delay_seconds(s.observed.job.uid, tries)
    status = enter(
        s,
        GangPhase.WAITING,
        not_before=to_time(s.now + delay),
        scheduling_since=None,
        scheduling_tries=tries,
        room_unseen=False,
    )
    message = (
        f"{len(unbound)} of {s.resolved.slots} pods without a node after {waited:.0f} s; next try in {delay:.0f} s"
    )
    return status, (JobEvent("Warning", "SchedulingTimeout", message),)


def _ready(s: Situation, slot: int) -> bool:
    pod = s.pods.get(slot)
    if pod is None or not pod.address or room.unusable(s, slot) is not None:
        return False
    report = s.current(slot)
    return s.acknowledged(slot) and report is not None and not report.terminating


def _slot_status(s: Situation, slot: int) -> SlotStatus:
    pod = s.pods[slot]
    return SlotStatus(index=slot, pod=pod.name, pod_uid=pod.uid, node=pod.node, address=pod.address)


def _preparing(s: Situation) -> Step | None:
    """Slot 0 checks the inputs and proposes; the proposal is recorded before any rank starts."""
    suspended = _suspend_now(s)
    if suspended is not None:
        return suspended
    report = s.current(0)
    if report is not None and report.phase == Phase.PREPARE and report.state == AgentState.PREPARED:
        if report.proposal is not None:
            return _record(s, report, report.proposal)
        problem = report.inputs_problem
        if problem is not None and not problem.retryable:
            return restarts.fail(s, problem.reason, problem.message)
    fault = faults.find(s)
    return restarts.after_fault(s, fault) if fault is not None else _lost_before_run(s)


def _lost_before_run(s: Situation) -> Step | None:
    """An agent on its way out before ranks run: nothing to save, so the gang is formed again at once."""
    leaving = [r.slot for r in s.current_reports() if r.terminating]
    return restarts.after_fault(s, draining.preemption(s)) if leaving else None


def _record(s: Situation, report: Report, proposal: ProposedResume) -> Step:
    """Write the one resume point; refuse a proposal that would lose a checkpoint or change the data."""
    refused = [RejectedStatus(**r.model_dump(), attempt=s.gang.attempt) for r in proposal.rejected]
    events = [retelling.checkpoint_rejected(r) for r in refused]
    known, saved, resume = s.status.dataset, s.status.checkpoint, proposal.resume
    if known is not None and known.digest != proposal.dataset.digest:
        message = f"prepared data has digest {proposal.dataset.digest}, the job began with {known.digest}"
        return restarts.fail(s, "DatasetChanged", message)
    rejected = {r.uri for r in proposal.rejected}
    if saved.step is not None and saved.uri not in rejected and (resume is None or resume.step < saved.step):
        found = f"step {resume.step}" if resume else "none"
        message = f"checkpoint of step {saved.step} ({saved.uri}) was committed, but the newest in the store is {found}"
        return restarts.fail(s, "CheckpointMissing", message)
    point = ResumeFrom(**resume.model_dump()) if resume else None
    step = point.step if point else 0
    verified = saved.model_copy(update={"verified": True}) if point and point.uri == saved.uri else saved
    if point and point.uri != saved.uri:
        verified = saved.model_copy(
            update={
                "step": point.step,
                "uri": point.uri,
                "manifest_digest": point.manifest_digest,
                "attempt": point.attempt,
                "verified": True,
                "committed_at": saved.committed_at,
            }
        )
    if refused:
        verified = verified.model_copy(update={"rejected": refused[0]})
    times = {"run_at": to_time(s.now), "resume_step": step}
    status = s.status.model_copy(
        update={
            "dataset": DatasetStatus(**proposal.dataset.model_dump()),
            "parameters": ParametersStatus(**sizes.model_dump()) if (sizes := proposal.parameters) else None,
            "memory": MemoryStatus(**memory.model_dump()) if (memory := proposal.memory) else None,
            "progress": _back_to(s, step),
            "checkpoint": verified,
            "restarts": progress.stamp(s.status.restarts, s.gang.attempt, **times),
        }
    )
    status = enter(s, GangPhase.RUNNING, status, resume_from=point)
    events.append(retelling.resume_point_recorded(s.gang.attempt, point))
    return status, tuple(events)


def _back_to(s: Situation, step: int) -> ProgressStatus | None:
    """Progress at the resume point; the highest step stays known."""
    old = s.status.progress
    if old is None or old.step == step:
        return old
    tokens = old.tokens * step // old.step if old.step else 0
    percent = f"{100 * step // max(1, old.total_steps)}%"
    return old.model_copy(update={"step": step, "tokens": tokens, "percent": percent, "eta_seconds": None})


def _running(s: Situation) -> Step | None:
    """Ranks run: watch for the end, for faults and for reasons to save and stop."""
    done = progress.succeeded(s)
    if done is not None:
        return succeed(s, done)
    fault = faults.find(s)
    if fault is not None:
        return restarts.after_fault(s, fault)
    if s.spec.suspend:
        status = enter(s, GangPhase.DRAINING, drain_cause="Suspend")
        return status, (JobEvent("Normal", "Draining", "suspended: ranks save and exit"),)
    leaving = [slot for slot in s.slots if draining.leaving(s, slot)]
    if leaving:
        status = enter(s, GangPhase.DRAINING, drain_cause=Cause.PREEMPTION.value)
        message = f"pod of slot {leaving[0]} is being ended: ranks save and exit"
        return status, (JobEvent("Normal", "Draining", message),)
    if any(r.state == AgentState.DRAINED for r in s.current_reports()):
        return draining.preempted(s)
    return None


def _stopped(s: Situation) -> Step | None:
    """Suspended: when wanted again, the next attempt begins once all pods are gone."""
    if s.spec.suspend or s.pods:
        return None
    if s.gang.attempt == 0:
        return enter(s, GangPhase.WAITING), (JobEvent("Normal", "Resumed", "no longer suspended"),)
    status, events = restarts.raise_attempt(s, Cause.RESUMED, "no longer suspended")
    return status, (JobEvent("Normal", "Resumed", "no longer suspended"), *events)
