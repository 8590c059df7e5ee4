"""What to do in the stage that the stored status says the job is in. Nothing here changes status."""

from dataclasses import replace

from trireme.resources.status import GangPhase
from trireme_operator.decide import room, targets
from trireme_operator.decide.model import Action, CreatePod, DeleteJob, DeletePod, EnsureObjects, PodView, seconds_since
from trireme_operator.decide.situation import GIVING_BACK, Situation

FINISHED_RETRY_SECONDS = 5.0


def actions(s: Situation) -> tuple[Action, ...]:
    """All actions that the stored stage asks for and that are not done yet."""
    phase = s.gang.phase
    told: tuple[Action, ...] = targets.puts(s)
    if phase in GIVING_BACK:
        return (*told, *_clear(s))
    if phase == GangPhase.FENCING:
        return (*told, *_clear_fenced(s))
    if phase == GangPhase.FORMING:
        return (*told, *_form(s))
    if phase == GangPhase.FINISHED:
        return (*told, *_finish(s))
    return told


def _clear(s: Situation) -> tuple[Action, ...]:
    """No pods are wanted."""
    return tuple(_delete(s, pod, f"gang is {s.gang.phase.value.lower()}") for pod in s.observed.pods if _worth(s, pod))


def _clear_fenced(s: Situation) -> tuple[Action, ...]:
    """Pods that ended or never started make room once their slot is fenced.

    One whose agent does not stop its ranks is ended itself.
    """
    waited = seconds_since(s.gang.phase_since, s.now)
    stubborn: tuple[Action, ...] = ()
    if waited > max(s.observed.policy.hold_timeout_seconds, 2.0 * s.timeouts.fence_seconds):
        stubborn = tuple(
            replace(_delete(s, pod, f"its agent did not stop its ranks in {waited:.0f} s"), grace_seconds=10)
            for slot, pod in s.pods.items()
            if not pod.finished and not s.fenced(slot) and _worth(s, pod)
        )
    return stubborn + tuple(
        _delete(s, pod, "pod ended" if pod.finished else "its agent never came up")
        for slot, pod in s.pods.items()
        if (pod.finished or room.never_started(s, slot)) and s.fenced(slot) and _worth(s, pod)
    )


def _form(s: Situation) -> tuple[Action, ...]:
    """Replace what cannot serve, create what is missing; all of it or nothing."""
    deletions: list[Action] = []
    for slot, pod in s.pods.items():
        reason = room.unusable(s, slot)
        if reason is not None and _worth(s, pod):
            deletions.append(_delete(s, pod, reason))
    deletions += [
        _delete(s, pod, "not a slot") for pod in s.observed.pods if pod.slot not in s.slots and _worth(s, pod)
    ]
    missing = room.missing(s)
    not_before = s.gang.not_before
    waits = not_before is not None and s.now < not_before.timestamp()
    if not missing or waits or (not room.left_to_scheduler(s) and room.shortage(s) is not None):
        return tuple(deletions)
    excluded = s.excluded_nodes
    return (*deletions, EnsureObjects(), *(CreatePod(slot=slot, excluded_nodes=excluded) for slot in missing))


def _finish(s: Situation) -> tuple[Action, ...]:
    """Released agents end their pods; what has not ended after a grace is deleted; later the job itself goes."""
    done = s.status.completion_time
    ended = seconds_since(done, s.now)
    ttl = s.spec.ttl_seconds_after_finished
    if ttl is not None and done is not None and ended >= ttl:
        return (DeleteJob(),)
    if ended <= s.observed.policy.release_grace_seconds:
        return ()
    return tuple(_delete(s, pod, "job has finished") for pod in s.observed.pods if not pod.finished and _worth(s, pod))


def next_look_at_finished_seconds(s: Situation) -> float | None:
    """When a finished job needs a pass again: soon while pods are left, else once, when its time to live is over."""
    ttl = s.spec.ttl_seconds_after_finished
    left = None if ttl is None else ttl - seconds_since(s.status.completion_time, s.now)
    if any(not pod.finished for pod in s.observed.pods) or (left is not None and left <= 0):
        return FINISHED_RETRY_SECONDS
    return left


def _worth(s: Situation, pod: PodView) -> bool:
    """Whether a delete changes anything: the pod is not on its way out yet, or must be forced."""
    return not pod.deleting or room.must_force(s, pod)


def _delete(s: Situation, pod: PodView, reason: str) -> DeletePod:
    force = room.must_force(s, pod)
    return DeletePod(name=pod.name, uid=pod.uid, resource_version=pod.resource_version, reason=reason, force=force)
