"""Which slots lack a pod, which pods are unusable, and whether there is room for what is lacking."""

import hashlib

from trireme_operator.decide import capacity
from trireme_operator.decide.model import Claim, PodView
from trireme_operator.decide.situation import FENCE_SLACK_SECONDS, Situation

IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
RETRY_BASE_SECONDS = 5.0
RETRY_MAX_SECONDS = 120.0


def unusable(s: Situation, slot: int) -> str | None:
    """Why the pod of a slot cannot serve this attempt, or None. Only asked once the older attempt is fenced."""
    pod = s.pods.get(slot)
    if pod is None:
        return None
    if pod.finished:
        return None if refusal_unclear(s, pod) else f"pod ended: {pod.reason or pod.phase}"
    if pod.node in s.excluded_nodes:
        return f"node {pod.node} is excluded"
    if pod.deleting:
        return "pod is being deleted"
    if never_started(s, slot):
        return "its agent never came up"
    contact = s.contact(slot)
    silent = 0.0 if contact is None else contact.silent_seconds(s.now)
    fence = s.timeouts.fence_seconds + FENCE_SLACK_SECONDS
    known = contact is not None and contact.last is not None
    if s.observed.node_down(pod.node) is True and (silent > fence or not known):
        return f"node {pod.node} is down"
    if s.observed.nodes is None and known and not pod.ready and silent > fence:
        return "pod is not ready and its agent is silent"
    if pod.address and silent > (fence if known else s.timeouts.start_timeout_seconds):
        return f"agent is silent for {silent:.0f} s"
    return None


def never_started(s: Situation, slot: int) -> bool:
    """Whether a pod got its node startTimeoutSeconds ago and its agent has never answered.

    An image or a setting that is wrong keeps every pod of the gang from starting and is no fault of a node.
    """
    pod, contact = s.pods.get(slot), s.contact(slot)
    if pod is None or pod.node is None or pod.finished or pod.deleting or not pod.bound_at:
        return False
    begun = pod.bound_at
    if pod.address:
        if contact is None or contact.last is not None:
            return False
        begun = max(begun, contact.since)
    if s.now - begun <= s.timeouts.start_timeout_seconds:
        return False
    return _another_serves(s, slot) or pod.waiting_reason not in IMAGE_REASONS | CONFIG_REASONS


def _another_serves(s: Situation, slot: int) -> bool:
    """Whether the agent of another slot came up: then neither image nor settings keep this one from it."""
    return any(s.acknowledged(other) for other in s.slots if other != slot)


def refused_everywhere(s: Situation) -> bool:
    """Whether no runtime of the gang's nodes could start the container: image or settings are wrong, and no node."""
    return all(slot in s.pods and s.pods[slot].refused for slot in s.slots)


def refusal_unclear(s: Situation, pod: PodView) -> bool:
    """Whether it is still open if the container of a pod could not be started because of its node.

    The pod stays as it is until another slot's has come up, or none of them can be started.
    """
    return pod.refused and not _another_serves(s, pod.slot) and not refused_everywhere(s)


def must_force(s: Situation, pod: PodView) -> bool:
    """Whether nobody on the pod's node confirms its end, so that the object must be removed by force.

    Only after the fence, so that nothing in the pod can commit any more: silence for fenceSeconds, or an agent that
    says so itself. Then a pod on a node that is down goes, and one that outstayed the grace of its deletion.
    """
    if pod.node is None:
        return False
    down = s.observed.node_down(pod.node)
    if stuck(s, pod):
        return True
    silent = s.observed.silent_seconds(pod.uid)
    fence = s.timeouts.fence_seconds + FENCE_SLACK_SECONDS
    if down is None:
        grace = s.timeouts.drain_seconds + 60.0
        return pod.deleting and not pod.ready and silent > fence + grace
    return down and (silent > fence or (pod.deleting and _harmless(s, pod)))


def stuck(s: Situation, pod: PodView) -> bool:
    """Whether a pod that nothing can commit from is still there although the grace of its deletion is long over."""
    if pod.node is None or pod.delete_by is None or s.now <= pod.delete_by + s.observed.policy.stuck_pod_seconds:
        return False
    return _harmless(s, pod)


def _harmless(s: Situation, pod: PodView) -> bool:
    silent = s.observed.silent_seconds(pod.uid)
    if silent > s.timeouts.fence_seconds + FENCE_SLACK_SECONDS:
        return True
    # Words of a moment ago count; older ones may be of before its ranks started.
    return s.pods.get(pod.slot) is pod and s.acknowledged(pod.slot) and silent <= s.timeouts.contact_timeout_seconds


def missing(s: Situation) -> list[int]:
    """Slots without a pod object."""
    return [slot for slot in s.slots if slot not in s.pods]


def shortage(s: Situation) -> tuple[str, str] | None:
    """Reason and numbers when there is no room for the pods that are lacking; None when there is, or none lack."""
    lacking = [slot for slot in s.slots if slot not in s.pods or unusable(s, slot) is not None]
    if not lacking:
        return None
    if s.observed.nodes is None:
        return None  # nodes cannot be seen: create, and let the scheduler find out
    own = frozenset(p.node for slot, p in s.pods.items() if p.node and slot not in lacking)
    room = capacity.check(
        s.observed.nodes,
        s.spec,
        capacity.pod_requests(s.spec),
        len(lacking),
        barred=own | frozenset(s.excluded_nodes),
        claims=_ahead(s),
    )
    if room.enough:
        return None
    replacing = s.gang.attempt > 1 and len(lacking) < s.resolved.slots
    reason = "NoReplacementNode" if replacing or s.status.restarts.history else "InsufficientCapacity"
    avoided = f"; kept off {', '.join(s.excluded_nodes)} because of faults there" if s.excluded_nodes else ""
    return reason, room.message() + avoided


def left_to_scheduler(s: Situation) -> bool:
    """Whether pods are created without room in sight, because room comes of pods that wait for it.

    A priority that preempts, another scheduler and a queue act on pods alone. The scheduling deadline still gives all
    of them back when one gets no node.
    """
    workers = s.spec.workers
    scheduler = workers.scheduler_name not in (None, "default-scheduler")
    queue = any(label.rsplit("/", 1)[-1] == "queue-name" for label in workers.labels)
    return s.gang.room_unseen or scheduler or queue or workers.priority_class_name is not None


def _ahead(s: Situation) -> list[Claim]:
    """What others take first: pods that wait for a node already, and all that older jobs want."""
    me = (s.observed.job.created, s.observed.job.uid)
    found = []
    for claim in sorted(s.observed.claims, key=lambda c: (c.created, c.uid)):
        if (claim.created, claim.uid) < me:
            found.append(claim)
        elif claim.unbound:
            found.append(Claim(**{**claim.__dict__, "missing": 0, "waiting": False}))
    waiting_own = [slot for slot, pod in s.pods.items() if pod.node is None and not pod.finished and not pod.deleting]
    if waiting_own:
        nodes = frozenset(p.node for p in s.pods.values() if p.node)
        found.append(
            Claim(
                created=me[0],
                uid=me[1],
                requests=capacity.pod_requests(s.spec),
                unbound=len(waiting_own),
                missing=0,
                waiting=False,
                spec=s.spec,
                own_nodes=nodes,
            )
        )
    return found


def retry_delay_seconds(uid: str, tries: int) -> float:
    """Wait after all pods were given back: doubles up to two minutes, with jitter that differs between jobs."""
    base = min(RETRY_MAX_SECONDS, RETRY_BASE_SECONDS * 2.0 ** min(tries, 10))
    digest = hashlib.sha256(f"{uid}/{tries}".encode()).digest()
    return float(base * (0.5 + int.from_bytes(digest[:4], "big") / 2**32))
