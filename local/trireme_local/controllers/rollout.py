"""The arithmetic of a Deployment's rollout, without any request.

Source: k8s.io/kubernetes/pkg/controller/deployment and its util package.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from math import ceil, floor

from trireme_local.controllers.claims import controller_reference
from trireme_local.kube import DEPLOYMENTS, REPLICASETS, JsonObject

HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
REVISION_HISTORY = "deployment.kubernetes.io/revision-history"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
_NOT_COPIED = {
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAXIMUM,
    "deprecated.deployment.rollback.to",
}
_HISTORY_BYTES = 2000
# The letters and digits of names: none that makes a word or looks like another.
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


def replicas_of(obj: JsonObject) -> int:
    """spec.replicas."""
    return int(obj["spec"].get("replicas", 1))


def status_count(obj: JsonObject, key: str) -> int:
    """One of the counts of a status, 0 where it is left out."""
    return int((obj.get("status") or {}).get(key, 0))


def is_rolling(deployment: JsonObject) -> bool:
    """Whether pods are replaced a few at a time."""
    return bool(deployment["spec"].get("strategy", {}).get("type", "RollingUpdate") == "RollingUpdate")


def _share(value: int | str, total: int, *, up: bool) -> int:
    if isinstance(value, int):
        return value
    part = int(value[:-1]) * total / 100
    return ceil(part) if up else floor(part)


def surge_and_unavailable(deployment: JsonObject) -> tuple[int, int]:
    """(pods above, pods below) the wanted number that a rolling update may reach; (0, 0) for Recreate.

    Percentages of surge round up, those of unavailable down; where both come to 0 one pod may be unavailable.
    """
    if not is_rolling(deployment):
        return 0, 0
    wanted = replicas_of(deployment)
    rolling = deployment["spec"].get("strategy", {}).get("rollingUpdate") or {}
    surge = _share(rolling.get("maxSurge", "25%"), wanted, up=True)
    unavailable = _share(rolling.get("maxUnavailable", "25%"), wanted, up=False)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return surge, min(unavailable, wanted)


def template_hash(template: JsonObject, collisions: int = 0) -> str:
    """Ten letters that stand for a pod template (FNV-1a of its JSON); a collision count gives other letters."""
    text = json.dumps(template, sort_keys=True, separators=(",", ":")).encode()
    if collisions:
        text += collisions.to_bytes(8, "little")
    value = 0x811C9DC5
    for byte in text:
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return "".join(_ALPHABET[ord(char) % len(_ALPHABET)] for char in str(value))


def same_template(left: JsonObject, right: JsonObject) -> bool:
    """Whether two pod templates are equal but for the hash label."""
    return _without_hash(left) == _without_hash(right)


def _without_hash(template: JsonObject) -> JsonObject:
    metadata = dict(template.get("metadata") or {})
    labels = {key: value for key, value in (metadata.pop("labels", None) or {}).items() if key != HASH_LABEL}
    metadata.pop("creationTimestamp", None)
    return {**template, "metadata": {**metadata, **({"labels": labels} if labels else {})}}


def _born(obj: JsonObject) -> tuple[str, str]:
    return obj["metadata"]["creationTimestamp"], obj["metadata"]["name"]


def oldest_first(replica_sets: Iterable[JsonObject]) -> list[JsonObject]:
    """By creation, then by name."""
    return sorted(replica_sets, key=_born)


def new_and_old(
    deployment: JsonObject, replica_sets: Iterable[JsonObject]
) -> tuple[JsonObject | None, list[JsonObject]]:
    """The ReplicaSet of the Deployment's template of now (the oldest, should there be several), and all others."""
    ordered = oldest_first(replica_sets)
    template = deployment["spec"]["template"]
    new = next((item for item in ordered if same_template(item["spec"]["template"], template)), None)
    return new, [item for item in ordered if item is not new]


def revision(obj: JsonObject) -> int:
    """The revision that an object's annotation tells, 0 without one."""
    try:
        return int((obj["metadata"].get("annotations") or {}).get(REVISION, "0"))
    except ValueError:
        return 0


def active(replica_sets: Iterable[JsonObject]) -> list[JsonObject]:
    """Those that want pods."""
    return [item for item in replica_sets if replicas_of(item) > 0]


def scale_annotations(deployment: JsonObject) -> dict[str, str]:
    """What a ReplicaSet remembers of the size that its Deployment had when it was scaled."""
    surge, _ = surge_and_unavailable(deployment)
    wanted = replicas_of(deployment)
    return {DESIRED: str(wanted), MAXIMUM: str(wanted + surge)}


def new_replicas(deployment: JsonObject, replica_sets: list[JsonObject], new: JsonObject | None) -> int:
    """How many pods the new ReplicaSet should want now. `replica_sets` are all, `new` among them."""
    wanted, mine = replicas_of(deployment), replicas_of(new) if new is not None else 0
    if not is_rolling(deployment):
        return wanted
    surge, _ = surge_and_unavailable(deployment)
    room = wanted + surge - sum(replicas_of(item) for item in replica_sets)
    if room <= 0:
        return mine
    return mine + min(room, wanted - mine)


def new_replica_set(deployment: JsonObject, name_hash: str, old: list[JsonObject]) -> JsonObject:
    """The ReplicaSet of the Deployment's template of now; `old` are the others."""
    spec, metadata = deployment["spec"], deployment["metadata"]
    template = copy.deepcopy(spec["template"])
    template.setdefault("metadata", {}).setdefault("labels", {})[HASH_LABEL] = name_hash
    selector = copy.deepcopy(spec["selector"])
    selector.setdefault("matchLabels", {})[HASH_LABEL] = name_hash
    number = max((revision(item) for item in old), default=0) + 1
    annotations = {**_copied(deployment), **scale_annotations(deployment), REVISION: str(number)}
    return {
        "apiVersion": REPLICASETS.group_version,
        "kind": REPLICASETS.kind,
        "metadata": {
            "name": f"{metadata['name']}-{name_hash}",
            "namespace": metadata["namespace"],
            "labels": dict(template["metadata"]["labels"]),
            "annotations": annotations,
            "ownerReferences": [controller_reference(deployment, DEPLOYMENTS)],
        },
        "spec": {
            "replicas": new_replicas(deployment, old, None),
            "minReadySeconds": spec.get("minReadySeconds", 0),
            "selector": selector,
            "template": template,
        },
    }


def _copied(deployment: JsonObject) -> dict[str, str]:
    annotations = deployment["metadata"].get("annotations") or {}
    return {key: value for key, value in annotations.items() if key not in _NOT_COPIED}


def revision_annotations(deployment: JsonObject, new: JsonObject, old: list[JsonObject]) -> dict[str, str]:
    """The annotations that the new ReplicaSet should have: the Deployment's, and the highest revision.

    One that was rolled back to moves to the front, and remembers the revisions that it had.
    """
    annotations = dict(new["metadata"].get("annotations") or {})
    annotations |= _copied(deployment)
    before, number = revision(new), max((revision(item) for item in old), default=0) + 1
    if before < number:
        annotations[REVISION] = str(number)
        if before:
            history = [item for item in annotations.get(REVISION_HISTORY, "").split(",") if item]
            history.append(str(before))
            while len(history) > 1 and len(",".join(history)) > _HISTORY_BYTES:
                history.pop(0)
            annotations[REVISION_HISTORY] = ",".join(history)
    return annotations


def is_scaling(deployment: JsonObject, replica_sets: Iterable[JsonObject]) -> bool:
    """Whether the Deployment's size has changed since its ReplicaSets were last scaled."""
    wanted = str(replicas_of(deployment))
    known = [(item["metadata"].get("annotations") or {}).get(DESIRED) for item in active(replica_sets)]
    return any(value is not None and value != wanted for value in known)


def is_saturated(deployment: JsonObject, new: JsonObject | None) -> bool:
    """Whether the new ReplicaSet alone gives what the Deployment wants."""
    if new is None:
        return False
    wanted = replicas_of(deployment)
    known = (new["metadata"].get("annotations") or {}).get(DESIRED)
    return replicas_of(new) == wanted and known == str(wanted) and status_count(new, "availableReplicas") == wanted


def _fraction(replica_set: JsonObject, deployment: JsonObject) -> int:
    """By how much a ReplicaSet grows (or shrinks) with its Deployment when each keeps its share."""
    mine = replicas_of(replica_set)
    wanted = replicas_of(deployment)
    if wanted == 0:
        return -mine
    surge, _ = surge_and_unavailable(deployment)
    known = (replica_set["metadata"].get("annotations") or {}).get(MAXIMUM, "")
    before = int(known) if known.isdigit() else status_count(deployment, "replicas")
    if before == 0:
        return 0
    return floor(mine * (wanted + surge) / before + 0.5) - mine


def proportional_sizes(deployment: JsonObject, replica_sets: Iterable[JsonObject]) -> list[tuple[JsonObject, int]]:
    """New sizes of the active ReplicaSets when a Deployment is scaled in the middle of a rollout."""
    live = active(replica_sets)
    surge, _ = surge_and_unavailable(deployment)
    wanted = replicas_of(deployment)
    change = (wanted + surge if wanted > 0 else 0) - sum(replicas_of(item) for item in live)
    # Growing, the newest of equals gets more; shrinking, the oldest loses more.
    live = oldest_first(live)
    if change > 0:
        live.reverse()
    live.sort(key=replicas_of, reverse=True)
    sizes: list[int] = []
    spent = 0
    for item in live:
        part = 0
        if change != 0 and change != spent:
            limit = change - spent
            part = min(_fraction(item, deployment), limit) if change > 0 else max(_fraction(item, deployment), limit)
        sizes.append(replicas_of(item) + part)
        spent += part
    if sizes and change != 0:
        sizes[0] = max(0, sizes[0] + change - spent)
    return list(zip(live, sizes, strict=True))


def old_scale_down(
    deployment: JsonObject, old: list[JsonObject], new: JsonObject | None
) -> list[tuple[JsonObject, int]]:
    """New sizes of old ReplicaSets that can shrink now without too few pods being available.

    Pods that are not available go first: they serve nobody. Then as many as the available ones exceed the minimum.
    """
    every = [*old, *([new] if new is not None else [])]
    _, unavailable = surge_and_unavailable(deployment)
    minimum = replicas_of(deployment) - unavailable
    new_missing = replicas_of(new) - status_count(new, "availableReplicas") if new is not None else 0
    allowed = sum(replicas_of(item) for item in every) - minimum - new_missing
    if allowed <= 0:
        return []
    sizes = {item["metadata"]["name"]: replicas_of(item) for item in old}
    cleaned = 0
    for item in oldest_first(old):
        name = item["metadata"]["name"]
        sick = sizes[name] - status_count(item, "availableReplicas")
        step = max(0, min(allowed - cleaned, sick, sizes[name]))
        sizes[name] -= step
        cleaned += step
    spare = sum(status_count(item, "availableReplicas") for item in every) - minimum
    for item in oldest_first(old):
        name = item["metadata"]["name"]
        step = max(0, min(spare, sizes[name]))
        sizes[name] -= step
        spare -= step
    shrunk = [(item, sizes[item["metadata"]["name"]]) for item in old]
    return [(item, size) for item, size in shrunk if size != replicas_of(item)]


def to_clean_up(deployment: JsonObject, old: list[JsonObject]) -> list[JsonObject]:
    """Old ReplicaSets beyond the revision history, the oldest revisions first; one with pods is never among them."""
    limit = deployment["spec"].get("revisionHistoryLimit")
    if limit is None:
        return []
    kept = [item for item in old if not item["metadata"].get("deletionTimestamp")]
    excess = sorted(kept, key=lambda item: (revision(item), *_born(item)))[: max(0, len(kept) - limit)]
    return [
        item
        for item in excess
        if not replicas_of(item)
        and not status_count(item, "replicas")
        and item["metadata"].get("generation", 1) <= status_count(item, "observedGeneration")
    ]
