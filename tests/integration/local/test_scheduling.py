"""Where pods are placed, and what a pod that fits nowhere says."""

from collections.abc import Iterator
from typing import Any

import pytest
from local_cluster_tools import Kubectl, shell_pod

Json = dict[str, Any]
DEVICE = "example.com/device"


@pytest.fixture(autouse=True)
def no_pod_is_left(kubectl: Kubectl) -> Iterator[None]:
    """A second try starts from what the first one started from."""
    yield
    kubectl.run("delete", "pod", "--all", "--grace-period=0", "--force", "--wait=false")
    kubectl.run("label", "node", "node-2", "zone-")


def _asking(name: str, count: int, **spec: Any) -> Json:
    return shell_pod(name, "sleep 300", container={"resources": {"limits": {DEVICE: str(count)}}}, **spec)


def test_a_pod_that_fits_nowhere_waits_and_says_why(kubectl: Kubectl) -> None:
    kubectl.apply(_asking("too-big", 3), _asking("elsewhere", 1, nodeSelector={"zone": "moon"}))

    def condition(name: str) -> Json:
        found = kubectl.get("pod", name)["status"].get("conditions") or []
        return next((item for item in found if item["type"] == "PodScheduled"), {})

    refused = kubectl.wait("condition", lambda: condition("too-big"))
    assert (refused["status"], refused["reason"]) == ("False", "Unschedulable")
    # A real scheduler adds why preemption does not help.
    assert refused["message"].startswith(f"0/3 nodes are available: 3 Insufficient {DEVICE}.")
    moon = kubectl.wait("condition", lambda: condition("elsewhere"))
    assert "3 node(s) didn't match Pod's node affinity/selector" in moon["message"]
    assert "FailedScheduling" in kubectl.run("describe", "pod", "too-big")
    kubectl.run("label", "node", "node-2", "zone=moon")
    kubectl.wait_phase("elsewhere", "Running")
    assert kubectl.get("pod", "elsewhere")["spec"]["nodeName"] == "node-2"
    kubectl.run("label", "node", "node-2", "zone-")
    kubectl.delete_pods("too-big", "elsewhere")


def test_devices_are_counted_and_a_pod_forced_onto_a_full_node_is_refused(kubectl: Kubectl) -> None:
    names = [f"device-{index}" for index in range(3)]
    kubectl.apply(*[_asking(name, 2) for name in names], _asking("device-late", 2))
    for name in names:
        kubectl.wait_phase(name, "Running")
    nodes = {kubectl.get("pod", name)["spec"]["nodeName"] for name in names}
    assert len(nodes) == 3
    assert kubectl.get("pod", "device-late")["status"]["phase"] == "Pending"
    kubectl.apply(_asking("forced", 1, nodeName="node-1"))
    refused = kubectl.wait_phase("forced", "Failed")
    assert refused["status"]["reason"] == f"OutOf{DEVICE}"
    kubectl.run("delete", "pod", names[0])
    kubectl.wait_phase("device-late", "Running")
    kubectl.delete_pods(*names, "device-late", "forced")


def test_anti_affinity_taints_and_cordons_are_respected(kubectl: Kubectl) -> None:
    apart = {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "apart"}}}
            ]
        }
    }
    kubectl.run("taint", "node", "node-1", "only=mine:NoSchedule")
    kubectl.run("cordon", "node-3")
    try:
        pods = [shell_pod(f"apart-{index}", "sleep 300", affinity=apart) for index in range(2)]
        for pod in pods:
            pod["metadata"]["labels"] = {"app": "apart"}
        kubectl.apply(*pods)
        kubectl.wait("one runs", lambda: kubectl.get("pod", "apart-0")["status"].get("phase") == "Running")
        message = kubectl.wait("the other waits", lambda: _message(kubectl, "apart-1"))
        assert kubectl.get("pod", "apart-0")["spec"]["nodeName"] == "node-2"
        assert message.startswith(
            "0/3 nodes are available: 1 node(s) didn't match pod anti-affinity rules, 1 node(s) had"
        )
        assert "{only: mine}, 1 node(s) were unschedulable." in message
        kubectl.run("uncordon", "node-3")
        kubectl.wait_phase("apart-1", "Running")
        assert kubectl.get("pod", "apart-1")["spec"]["nodeName"] == "node-3"
    finally:
        kubectl.run("taint", "node", "node-1", "only-")
        kubectl.run("uncordon", "node-3")
        kubectl.delete_pods("apart-0", "apart-1")


def _message(kubectl: Kubectl, name: str) -> str:
    conditions = kubectl.get("pod", name)["status"].get("conditions") or []
    return str(next((item.get("message", "") for item in conditions if item["type"] == "PodScheduled"), ""))


def test_drain_empties_a_node(kubectl: Kubectl) -> None:
    kubectl.apply(shell_pod("drained", "sleep 300", nodeName="node-2"))
    kubectl.wait_phase("drained", "Running")
    kubectl.run("drain", "node-2", "--force", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=30s")
    assert not kubectl.exists("pod", "drained")
    kubectl.run("uncordon", "node-2")


def test_a_disruption_budget_holds_up_an_eviction(kubectl: Kubectl) -> None:
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "keep-one"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"test": "guarded"}}},
    }
    kubectl.apply(budget, shell_pod("guarded", "sleep 300"))
    kubectl.wait("healthy", lambda: kubectl.get("pdb", "keep-one").get("status", {}).get("currentHealthy") == 1)
    eviction = '{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "guarded"}}'
    path = "/api/v1/namespaces/default/pods/guarded/eviction"
    refused = kubectl.run("create", "--raw", path, "-f", "-", stdin=eviction, check=False)
    assert "disruption budget" in refused
    kubectl.apply({**budget, "spec": {**budget["spec"], "minAvailable": 0}})
    kubectl.wait("allowed", lambda: kubectl.get("pdb", "keep-one")["status"].get("disruptionsAllowed") == 1)
    kubectl.run("create", "--raw", path, "-f", "-", stdin=eviction)
    kubectl.wait("evicted", lambda: not kubectl.exists("pod", "guarded"))
    kubectl.run("delete", "pdb", "keep-one")
