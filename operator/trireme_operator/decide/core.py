"""decide(): from everything that was observed to one status write, or to actions. Pure."""

from dataclasses import replace

from trireme.protocol import PROTOCOL_VERSION
from trireme.resources.status import ChoiceStatus, ConditionType, GangPhase, JobStatus, Resolved
from trireme_operator.decide import acting, conditions, gang, progress, retelling, timekeeping
from trireme_operator.decide.defaults import fill_in
from trireme_operator.decide.kinds import Admitted, Kind, Refused, UnreadableSpec, admit, parse
from trireme_operator.decide.model import Decision, JobEvent, Observed, seconds_since, to_time
from trireme_operator.decide.situation import Situation


def decide(observed: Observed, kind: Kind) -> Decision:
    """What to do next for one job.

    Answers either a status to write (with the events that it means) or actions that the stored status covers,
    never both: a stage begins with its record in status, and actions for it follow when that write was seen.
    Raises UnreadableSpec.
    """
    if observed.job.deleting:
        return Decision()
    return replace(_decide(observed, kind), told=retelling.stage_events(observed.job.status, observed.now))


def _decide(observed: Observed, kind: Kind) -> Decision:
    old = observed.job.status
    begun = old if old.time.open or old.completion_time else _begin(observed, old)
    if begun.resolved is None:
        return _admission(observed, kind, begun)
    s = situation(observed, kind)
    if s is None:
        return Decision()
    if s.gang.phase == GangPhase.FINISHED:
        return Decision(actions=acting.actions(s), requeue_seconds=acting.next_look_at_finished_seconds(s))
    facts = progress.absorb(s, s.status)
    told = progress.checkpoint_events(s.status.checkpoint, facts.checkpoint)
    ahead = Situation(_with_status(observed, facts), s.spec, s.resolved)
    step = gang.advance(ahead)
    if step is not None:
        new, events = step
        return Decision(status=_settle(ahead, new), events=(*told, *events), requeue_seconds=0.0)
    new = _settle(ahead, facts)
    if _worth_writing(observed, old, new):
        if new.gang.phase not in progress.RUN_PHASES:  # from here counts when details are due again
            new = new.model_copy(update={"time": timekeeping.close(new.time, observed.now)})
        return Decision(status=new, events=told, requeue_seconds=0.0)
    return Decision(actions=acting.actions(s), requeue_seconds=1.0)


def situation(observed: Observed, kind: Kind) -> Situation | None:
    """The working view of an accepted job; None when its status was never resolved. Raises UnreadableSpec."""
    resolved = observed.job.status.resolved
    if resolved is None:
        return None
    live = parse(kind, observed.job.spec)
    frozen = parse(kind, resolved.spec)
    spec = live or frozen
    if spec is None:
        raise UnreadableSpec(
            "spec and status.resolved.spec are both not valid: was the operator replaced by an older one?"
        )
    if frozen is not None and live is not None:
        # An upgrade may bring new defaults: what is not mutable stays as it was resolved.
        spec = kind.with_live_fields(frozen, live)
    return Situation(observed, spec, resolved)


def _begin(observed: Observed, status: JobStatus) -> JobStatus:
    return status.model_copy(update={"time": timekeeping.started(observed.job.created)})


def _admission(observed: Observed, kind: Kind, status: JobStatus) -> Decision:
    """Accept and freeze, or refuse with the numbers; a refused spec is looked at again when it was edited."""
    accepted = ConditionType.ACCEPTED
    known = status.condition(accepted)
    if known is not None and known.status == "False" and known.observed_generation == observed.job.generation:
        return Decision()
    verdict = admit(kind, observed.job.name, observed.job.spec)
    if isinstance(verdict, Refused):
        return refuse(observed, verdict.reason, verdict.message)
    verdict = fill_in(verdict, observed.policy.pod_defaults)
    resolved = _resolve(observed, kind, verdict)
    status = status.model_copy(
        update={
            "resolved": resolved,
            "start_time": to_time(observed.now),
            "gang": status.gang.model_copy(update={"phase_since": to_time(observed.now)}),
        }
    )
    ahead = Situation(_with_status(observed, status), verdict.spec, resolved)
    event = JobEvent("Normal", "Accepted", f"{resolved.slots} pods with {resolved.ranks_per_slot} ranks each")
    return Decision(status=_settle(ahead, status), events=(event,), requeue_seconds=0.0)


def refuse(observed: Observed, reason: str, message: str) -> Decision:
    """Accepted=False for a job that has never been accepted."""
    old = observed.job.status
    status = old if old.time.open else _begin(observed, old)
    status = conditions.put(status, observed, ConditionType.ACCEPTED, "False", reason, message)
    status = conditions.refresh(status, observed, None)
    return Decision(status=status, events=(JobEvent("Warning", "Rejected", f"{reason}: {message}"),))


def _resolve(observed: Observed, kind: Kind, verdict: Admitted) -> Resolved:
    workers = verdict.spec.workers
    return Resolved(
        spec=verdict.spec.to_manifest(),
        choices=[ChoiceStatus(field=c.field, value=c.value, rule=c.rule) for c in verdict.choices],
        plan=dict(verdict.plan),
        image=workers.image or observed.policy.default_image,
        protocol=PROTOCOL_VERSION,
        slots=workers.nodes,
        ranks_per_slot=workers.devices_per_node,
        program=kind.program,
        at=to_time(observed.now),
    )


def _with_status(observed: Observed, status: JobStatus) -> Observed:
    return replace(observed, job=replace(observed.job, status=status))


def _settle(s: Situation, status: JobStatus) -> JobStatus:
    """Conditions, state, ready count and time account for the status about to be written."""
    ready = sum(1 for slot in s.slots if (c := s.contact(slot)) and c.last is not None and not c.error)
    status = status.model_copy(update={"gang": status.gang.model_copy(update={"nodes": f"{ready}/{s.resolved.slots}"})})
    status = conditions.refresh(status, s.observed, s)
    if status.gang.phase == GangPhase.FINISHED:
        return status.model_copy(update={"time": timekeeping.finished(status.time, s.now)})
    # While ranks run, agents divide the open interval. What they have not reported when the ranks end belongs to what
    # follows; what was open when the ranks start does not.
    running = s.gang.phase in progress.RUN_PHASES
    category = conditions.nominal_category(status)
    if not running and status.gang.phase in progress.RUN_PHASES:
        status = status.model_copy(update={"time": timekeeping.close(status.time, s.now)})
    return status.model_copy(update={"time": timekeeping.switch(status.time, s.now, category, keep_open=running)})


def _worth_writing(observed: Observed, old: JobStatus, new: JobStatus) -> bool:
    """Whether anything but running numbers and details changed, or these are due."""
    if _essence(old) != _essence(new):
        return True
    if new.gang.phase not in progress.RUN_PHASES:
        written = old.time.open.since if old.time.open else None
        due = seconds_since(written, observed.now) >= observed.policy.progress_interval_seconds
        return due and _details(old) != _details(new)
    if old.progress == new.progress and old.checkpoint == new.checkpoint:
        return False
    since = old.progress.updated_at if old.progress else None
    return since is None or seconds_since(since, observed.now) >= observed.policy.progress_interval_seconds


def _essence(status: JobStatus) -> object:
    """What a user must see at once."""
    gang = status.gang.model_copy(update={"nodes": ""})
    return (
        status.observed_generation,
        status.state,
        [(c.type, c.status, c.reason) for c in status.conditions],
        gang,
        status.checkpoint.uri,
        status.checkpoint.failing_reason,
        [(r.attempt, r.first_step_at is None, r.caught_up_at is None) for r in status.restarts.history],
        status.progress is None,
    )


def _details(status: JobStatus) -> object:
    """What a user who waits for something reads.

    How old the newest checkpoint is grows by itself and calls for no write.
    """
    timeless = [(c.type, c.message) for c in status.conditions if c.type != ConditionType.CHECKPOINT_HEALTHY]
    return timeless, status.gang.nodes
