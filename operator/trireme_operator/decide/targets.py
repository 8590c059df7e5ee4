"""What each agent is told: derived from the stored status alone, so that every leader sends the same."""

from trireme.checkpoints import parse_step_key
from trireme.checkpoints.keys import MANIFEST_NAME
from trireme.protocol import DatasetRef, Host, Phase, ResumePoint, Settings, Target
from trireme.resources.status import GangPhase
from trireme_operator.decide.model import PodView, PutTarget
from trireme_operator.decide.situation import GIVING_BACK, PHASES, Situation

AGENT_PORT = 7070


def settings(s: Situation) -> Settings:
    """The mutable fields of the spec as agents get them."""
    checkpoint, timeouts = s.spec.checkpoint, s.timeouts
    return Settings(
        checkpoint_interval_steps=checkpoint.interval_steps,
        checkpoint_interval_seconds=float(checkpoint.interval_seconds) or None,
        keep=checkpoint.keep,
        fence_seconds=float(timeouts.fence_seconds),
        start_timeout_seconds=float(timeouts.start_timeout_seconds),
        step_timeout_seconds=float(timeouts.step_timeout_seconds),
        drain_seconds=float(timeouts.drain_seconds),
    )


def target(s: Situation) -> Target | None:
    """The target of every agent of the gang, or None in phases without one."""
    phase = PHASES.get(s.gang.phase) or (Phase.RELEASE if s.gang.phase in GIVING_BACK else None)
    if phase is None or s.gang.attempt == 0:
        return None
    gang, data = s.gang, s.status.dataset
    running = phase in (Phase.RUN, Phase.DRAIN, Phase.RELEASE)
    resume = gang.resume_from
    return Target(
        job_uid=s.observed.job.uid,
        attempt=gang.attempt,
        phase=phase,
        hosts=[Host(slot=r.index, address=r.address or "", agent_port=AGENT_PORT) for r in gang.slots]
        if running
        else [],
        resume_from=ResumePoint(**resume.model_dump()) if running and resume else None,
        dataset=DatasetRef(**data.model_dump()) if data else None,
        recompute_until_step=gang.recompute_until_step,
        verified=_verified(s),
        settings=settings(s),
    )


def _verified(s: Situation) -> ResumePoint | None:
    """The recorded checkpoint, unless the present attempt wrote it: its agents know that."""
    saved = s.status.checkpoint
    if not saved.uri or not saved.manifest_digest or saved.step is None or not saved.attempt:
        return None
    place = parse_step_key(f"{saved.uri}/{MANIFEST_NAME}")
    own = place is not None and place[0] == s.observed.job.uid  # else its attempt is one of an earlier job
    if own and saved.attempt >= s.gang.attempt:
        return None
    return ResumePoint(uri=saved.uri, manifest_digest=saved.manifest_digest, step=saved.step, attempt=saved.attempt)


def puts(s: Situation) -> tuple[PutTarget, ...]:
    """Targets that agents do not hold yet."""
    wanted = target(s)
    if wanted is None:
        return ()
    found = []
    for slot in s.slots:
        pod = s.pods.get(slot)
        if pod is None or pod.finished or not pod.address or not _may_tell(s, slot, pod):
            continue
        contact = s.contact(slot)
        report = contact.report if contact else None
        if report is not None and report.attempt > s.gang.attempt:
            continue  # our status is stale; a newer leader is at work
        if contact is None or contact.sent != wanted or not s.reached(slot, wanted.phase):
            found.append(PutTarget(slot=slot, pod_uid=pod.uid, address=pod.address, target=wanted))
    return tuple(found)


def _may_tell(s: Situation, slot: int, pod: PodView) -> bool:
    """Who takes part in the present phase.

    From RUN on only the recorded pods do; a pod that replaced one of them waits for the next attempt. Pods that are
    given back end by their kubelet's hand; where that has not come in time, their agents are asked to leave.
    """
    if s.gang.phase in GIVING_BACK:
        return pod.delete_by is not None and s.now > pod.delete_by
    if s.gang.phase not in (GangPhase.RUNNING, GangPhase.DRAINING):
        return True
    record = s.records.get(slot)
    return record is not None and record.pod_uid == pod.uid
