"""Quantities, selectors and placement."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.utils.quantity import parse_quantity as official_parse

from trireme_local.controllers.nodelifecycle import eviction_time, wanted_taints
from trireme_local.controllers.scheduling import NodeView, place
from trireme_local.quantities import InvalidQuantity, parse_quantity, pod_amounts
from trireme_local.selectors import label_selector_matches, node_matches, tolerates

Json = dict[str, Any]


@given(
    number=st.decimals(min_value=0, max_value=10**6, places=3, allow_nan=False),
    suffix=st.sampled_from(["", "n", "u", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"]),
)
def test_quantities_equal_the_official_parser(number: Any, suffix: str) -> None:
    text = f"{number}{suffix}"
    assert parse_quantity(text) == official_parse(text)


@pytest.mark.parametrize("text", ["", "abc", "1.2.3", "5X", "Gi"])
def test_what_is_not_a_quantity_is_refused(text: str) -> None:
    with pytest.raises(InvalidQuantity):
        parse_quantity(text)


def _pod(name: str = "p", cpu: str = "1", labels: Json | None = None, **spec: Any) -> Json:
    return {
        "metadata": {"name": name, "namespace": "n", "uid": name, "labels": labels or {}},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}], **spec},
        "status": {"phase": "Running"},
    }


def _node(name: str, cpu: str = "4", labels: Json | None = None, **spec: Any) -> Json:
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}},
        "spec": spec,
        "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "10"}},
    }


def test_a_pod_needs_the_larger_of_its_init_and_its_running_containers() -> None:
    def container(cpu: str, **more: Any) -> Json:
        return {"name": cpu, "resources": {"requests": {"cpu": cpu}}, **more}

    pod = {
        "spec": {
            "containers": [container("1"), container("2")],
            "initContainers": [container("1", restartPolicy="Always"), container("5")],
        }
    }
    assert pod_amounts(pod)["cpu"] == 6000, "sidecar 1 + init 5 is more than 1 + 2 + sidecar 1"
    limits_only = {"spec": {"containers": [{"name": "c", "resources": {"limits": {"x.dev/gpu": "2"}}}]}}
    assert pod_amounts(limits_only) == {"x.dev/gpu": 2000}


def test_the_least_loaded_node_that_fits_is_chosen() -> None:
    busy = NodeView(_node("busy"), [_pod("other", "2")])
    assert place(_pod(), [busy, NodeView(_node("idle"))]).node == "idle"
    assert place(_pod(cpu="3"), [busy]).message == "0/1 nodes are available: 1 Insufficient cpu."


def test_finished_pods_occupy_nothing() -> None:
    finished = _pod("done", "4")
    finished["status"]["phase"] = "Succeeded"
    assert place(_pod(cpu="4"), [NodeView(_node("a"), [finished])]).node == "a"


def test_no_nodes_at_all_is_said() -> None:
    assert place(_pod(), []).message == "no nodes available to schedule pods"


def test_affinity_to_other_pods_follows_them() -> None:
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "db"}}}
    near = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    views = [NodeView(_node("a")), NodeView(_node("b"), [_pod("db", labels={"app": "db"})])]
    assert place(_pod(affinity=near), views).node == "b"
    assert place(_pod(affinity=near), views[:1]).node is None
    assert place(_pod(labels={"app": "db"}, affinity=near), views[:1]).node == "a", "the first of its own group"


def test_an_existing_pod_keeps_others_away() -> None:
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "x"}}}
    loner = _pod("loner", affinity={"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}})
    view = NodeView(_node("a"), [loner])
    assert place(_pod(labels={"app": "x"}), [view]).node is None
    assert place(_pod(labels={"app": "y"}), [view]).node == "a"


def test_spreading_bounds_the_skew() -> None:
    constraint = {
        "topologyKey": "zone",
        "maxSkew": 1,
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "s"}},
    }
    pod = _pod("new", labels={"app": "s"}, topologySpreadConstraints=[constraint])
    full = NodeView(_node("a", labels={"zone": "1"}), [_pod("old", labels={"app": "s"})])
    empty = NodeView(_node("b", cpu="0", labels={"zone": "2"}))
    assert place(pod, [full, empty]).node is None, "zone 1 would be two ahead of zone 2, where nothing fits"
    assert place(pod, [full, NodeView(_node("b", labels={"zone": "2"}))]).node == "b"


def test_preferred_affinity_outweighs_load() -> None:
    term = {"weight": 10, "preference": {"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}}
    pod = _pod(affinity={"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}})
    loaded = NodeView(_node("a", labels={"gpu": "1"}), [_pod("other", "2")])
    assert place(pod, [loaded, NodeView(_node("b"))]).node == "a"


@pytest.mark.parametrize(
    ("expression", "matches"),
    [
        ({"key": "a", "operator": "In", "values": ["1", "2"]}, True),
        ({"key": "a", "operator": "NotIn", "values": ["1"]}, False),
        ({"key": "b", "operator": "NotIn", "values": ["1"]}, True),
        ({"key": "a", "operator": "Exists"}, True),
        ({"key": "b", "operator": "DoesNotExist"}, True),
        ({"key": "a", "operator": "Gt", "values": ["0"]}, True),
        ({"key": "a", "operator": "Lt", "values": ["0"]}, False),
    ],
)
def test_match_expressions(expression: Json, matches: bool) -> None:
    assert label_selector_matches({"matchExpressions": [expression]}, {"a": "1"}) is matches


def test_empty_selectors() -> None:
    assert label_selector_matches({}, {"a": "1"})
    assert not label_selector_matches(None, {"a": "1"})
    term = {"nodeSelectorTerms": [{}]}
    pod = _pod(affinity={"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}})
    assert not node_matches(pod, _node("a")), "an empty node selector term selects nothing"


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        ({"operator": "Exists"}, True),
        ({"key": "k", "operator": "Exists", "effect": "NoExecute"}, True),
        ({"key": "k", "value": "v"}, True),
        ({"key": "k", "value": "w"}, False),
        ({"key": "k", "operator": "Exists", "effect": "NoSchedule"}, False),
        ({"value": "v"}, False),
    ],
)
def test_tolerations(toleration: Json, tolerated: bool) -> None:
    assert tolerates(toleration, {"key": "k", "value": "v", "effect": "NoExecute"}) is tolerated


TAINT = {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": "1970-01-01T00:01:40Z"}


def test_a_pod_is_evicted_when_its_shortest_toleration_is_over() -> None:
    def tolerating(*seconds: int | None) -> Json:
        items = [
            {"key": TAINT["key"], "operator": "Exists"} | ({} if item is None else {"tolerationSeconds": item})
            for item in seconds
        ]
        return _pod(tolerations=items)

    assert eviction_time(tolerating(30, 10), [TAINT], 300) == 110
    assert eviction_time(tolerating(None), [TAINT], 300) is None
    assert eviction_time(_pod(), [TAINT], 300) == 400, "without any toleration: the configured default"
    assert eviction_time(_pod(), [{**TAINT, "key": "mine"}], 300) == 100
    assert eviction_time(_pod(), [{**TAINT, "effect": "NoSchedule"}], 300) is None


def test_a_nodes_taints_follow_its_condition_and_its_cordon_and_keep_foreign_ones() -> None:
    def with_ready(status: str, **spec: Any) -> Json:
        node = _node("a", **spec)
        node["status"]["conditions"] = [{"type": "Ready", "status": status}]
        return node

    foreign = {"key": "mine", "effect": "NoSchedule"}
    lost = wanted_taints(with_ready("Unknown", taints=[foreign], unschedulable=True))
    assert [(item["key"], item["effect"]) for item in lost] == [
        ("mine", "NoSchedule"),
        ("node.kubernetes.io/unreachable", "NoSchedule"),
        ("node.kubernetes.io/unreachable", "NoExecute"),
        ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ]
    assert wanted_taints(with_ready("True", taints=lost)) == [foreign]
    assert wanted_taints(with_ready("Unknown", taints=lost))[1] is lost[1], "the time of a taint stays"
