"""Which slots lack a pod, which pods are unusable, and whether there is room for what is lacking."""

import hashlib

from trireme.resources.base import parse_quantity
from trireme.resources.common import Resources, TrainingJobSpec
from trireme_operator.decide import capacity
from trireme_operator.decide.model import Claim, PodView, Quantities
from trireme_operator.decide.situation import FENCE_SLACK_SECONDS, Situation

RETRY_BASE_SECONDS = 5.0
RETRY_MAX_SECONDS = 120.0


def pod_resources(spec: TrainingJobSpec) -> Resources:
    """Requests and limits of a training pod: the spec's, and one device per rank."""
    device, given = spec.workers.accelerator.requested_resource, spec.workers.resources
    if device is None:
        return given
    count = {device: str(spec.workers.devices_per_node)}
    return Resources(requests={**given.requests, **count}, limits={**given.limits, **count})


def pod_requests(spec: TrainingJobSpec) -> Quantities:
    """Requests of a training pod in thousandths; where only a limit is given, it is the request."""
    resources = pod_resources(spec)
    return {n: int(parse_quantity(q) * 1000) for n, q in {**resources.limits, **resources.requests}.items()}


def excluded_nodes(s: Situation) -> tuple[str, ...]:
    """Nodes that the job's pods are kept off."""
    return tuple(sorted(r.node for r in s.gang.node_records if r.excluded))


def unusable(s: Situation, slot: int) -> str | None:
    """Why the pod of a slot cannot serve this attempt, or None. Only asked once the older attempt is fenced."""
    pod = s.pods.get(slot)
    if pod is None:
        return None
    if pod.finished:
        return f"pod ended: {pod.reason or pod.phase}"
    if pod.node in excluded_nodes(s):
        return f"node {pod.node} is excluded"
    if pod.deleting:
        return "pod is being deleted"
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


def must_force(s: Situation, pod: PodView) -> bool:
    """Whether nobody is left on the pod's node to confirm its end, so that the object must be removed by force.

    Only after the fence: silence for fenceSeconds, so that nothing in the pod can commit any more.
    """
    fence = s.timeouts.fence_seconds + FENCE_SLACK_SECONDS
    down = s.observed.node_down(pod.node)
    if pod.node is None:
        return False
    silent = s.observed.silent_seconds(pod.uid)
    if down is None:
        grace = s.timeouts.drain_seconds + 60.0
        return pod.deleting and not pod.ready and silent > fence + grace
    return down and silent > fence


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
        pod_requests(s.spec),
        len(lacking),
        barred=own | frozenset(excluded_nodes(s)),
        claims=_ahead(s),
    )
    if room.enough:
        return None
    replacing = s.gang.attempt > 1 and len(lacking) < s.resolved.slots
    reason = "NoReplacementNode" if replacing or s.status.restarts.total > 0 else "InsufficientCapacity"
    return reason, room.message()


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
                requests=pod_requests(s.spec),
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
