"""How many pods may go is a share of what their controllers want, not of what happens to be there."""

from typing import Any

import pytest

from trireme_local.controllers.disruption import budget_status

Json = dict[str, Any]


def controlled(kind: str, name: str, owner: tuple[str, str] | None, **spec: Any) -> Json:
    reference = {"kind": owner[0], "name": owner[1], "uid": owner[1], "controller": True} if owner else None
    metadata = {"name": name, "namespace": "n", "uid": name, "ownerReferences": [reference] if reference else []}
    return {"kind": kind, "metadata": metadata, "spec": spec}


def ready_pod(name: str, owner: tuple[str, str] | None) -> Json:
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    return {**controlled("Pod", name, owner), "status": status}


OWNERS = {
    ("Deployment", "d"): controlled("Deployment", "d", None, replicas=4),
    ("ReplicaSet", "old"): controlled("ReplicaSet", "old", ("Deployment", "d"), replicas=1),
    ("ReplicaSet", "new"): controlled("ReplicaSet", "new", ("Deployment", "d"), replicas=4),
    ("ReplicaSet", "single"): controlled("ReplicaSet", "single", None, replicas=2),
}


def find(kind: str, namespace: str, name: str) -> Json | None:
    return OWNERS.get((kind, name))


@pytest.mark.parametrize(
    ("spec", "expected", "desired", "allowed"),
    [
        ({"maxUnavailable": 1}, 7, 6, 0),
        ({"maxUnavailable": "50%"}, 7, 3, 1),
        ({"minAvailable": "50%"}, 7, 4, 0),
        ({"minAvailable": 3}, 4, 3, 1),
    ],
)
def test_shares_are_of_the_wanted_pods(spec: Json, expected: int, desired: int, allowed: int) -> None:
    owners = [("ReplicaSet", "old"), ("ReplicaSet", "new"), ("ReplicaSet", "single"), None]
    pods = [ready_pod(str(index), owner) for index, owner in enumerate(owners)]
    budget = {"metadata": {"name": "b", "namespace": "n", "generation": 1}, "spec": spec}
    found = budget_status(budget, pods, find)
    assert (found["expectedPods"], found["desiredHealthy"], found["disruptionsAllowed"]) == (expected, desired, allowed)
