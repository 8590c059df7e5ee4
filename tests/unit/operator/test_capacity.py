"""Room for a whole gang, or none at all."""

from dataclasses import replace
from typing import Any

from gang_machine import SPEC

from trireme.resources import job_kind_named
from trireme.resources.common import TrainingJobSpec
from trireme_operator.decide import Claim, NodeView
from trireme_operator.decide.capacity import check, pod_requests
from trireme_operator.decide.room import retry_delay_seconds

KIND = job_kind_named("PretrainJob")


def spec(**workers: Any) -> TrainingJobSpec:
    parsed: TrainingJobSpec = KIND.parse({**SPEC, "workers": {**SPEC["workers"], **workers}})
    return parsed


def node(name: str, cpu: int = 4, **more: Any) -> NodeView:
    free = {"cpu": cpu * 1000, "memory": 8 * 2**30 * 1000, "pods": 10_000}
    return NodeView(name=name, free=free, labels={"kubernetes.io/hostname": name}, **more)


PLAIN = spec()
CPU = pod_requests(PLAIN)


def test_a_gang_needs_different_nodes() -> None:
    assert check([node("a", 100)], PLAIN, CPU, 2).found == 1
    assert check([node("a"), node("b")], PLAIN, CPU, 2).enough


def test_full_unready_and_cordoned_nodes_do_not_count() -> None:
    nodes = [node("a", 0), node("b", ready=False), node("c", schedulable=False), node("d")]
    room = check(nodes, PLAIN, CPU, 2)
    assert (room.found, room.total) == (1, 4)
    assert "2 nodes with enough free resources needed, 1 found" in room.message()


def test_taints_count_unless_tolerated() -> None:
    tainted = node("a", taints=({"key": "gpu", "value": "yes", "effect": "NoSchedule"},))
    soft = node("b", taints=({"key": "gpu", "value": "yes", "effect": "PreferNoSchedule"},))
    assert check([tainted, soft], PLAIN, CPU, 2).found == 1
    tolerant = spec(tolerations=[{"key": "gpu", "operator": "Exists"}])
    assert check([tainted, soft], tolerant, CPU, 2).enough


def test_selector_and_required_affinity_count() -> None:
    zone = replace(node("a"), labels={"zone": "x"})
    assert check([zone, node("b")], spec(nodeSelector={"zone": "x"}), CPU, 1).found == 1
    term = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["x"]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    assert check([zone, node("b")], spec(affinity={"nodeAffinity": required}), CPU, 2).found == 1


def test_devices_are_requested_one_per_rank() -> None:
    gpus = spec(accelerator={"kind": "cpu", "resourceName": "example.com/slot"}, devicesPerNode=2)
    assert pod_requests(gpus)["example.com/slot"] == 2000
    with_two = replace(node("a"), free={**node("a").free, "example.com/slot": 2000})
    assert check([with_two, node("b")], gpus, pod_requests(gpus), 1).found == 1


def claim(uid: str, *, unbound: int = 0, missing: int = 0, waiting: bool = False) -> Claim:
    full = {**CPU, "cpu": 4000}
    return Claim(created=1.0, uid=uid, requests=full, unbound=unbound, missing=missing, waiting=waiting, spec=PLAIN)


def test_what_others_are_about_to_take_is_not_free() -> None:
    nodes = [node("a"), node("b"), node("c")]
    assert check(nodes, PLAIN, CPU, 2, claims=[claim("x", unbound=1)]).found == 2
    assert not check(nodes, PLAIN, CPU, 2, claims=[claim("x", missing=2, waiting=True)]).enough


def test_a_waiting_gang_that_cannot_fit_holds_nothing_back() -> None:
    nodes = [node("a"), node("b"), node("c")]
    assert check(nodes, PLAIN, CPU, 2, claims=[claim("x", missing=4, waiting=True)]).enough


def test_retries_of_different_jobs_spread() -> None:
    delays = {retry_delay_seconds(uid, 1) for uid in ("a", "b", "c", "d")}
    assert len(delays) == 4
    assert all(5.0 <= delay <= 15.0 for delay in delays)
    assert retry_delay_seconds("a", 30) <= 180.0
