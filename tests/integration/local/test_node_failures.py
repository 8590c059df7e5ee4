"""A node that is killed, frozen or cut off: what the API shows, what is left running, and what comes back."""

import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from local_cluster_tools import GRACE_SECONDS, Cluster, Kubectl, main_state, shell_pod

from trireme_local import partition

Json = dict[str, Any]
NOTICE_SECONDS = GRACE_SECONDS + 15
EVICT_NOW = [
    {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0}
    for key in ("node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready")
]


def ready(kubectl: Kubectl, node: str) -> str:
    conditions = kubectl.get("node", node)["status"]["conditions"]
    return str(next(item["status"] for item in conditions if item["type"] == "Ready"))


@pytest.fixture(autouse=True)
def every_node_is_back(cluster: Cluster) -> Iterator[None]:
    """A test that fails half-way leaves no broken node and no pod to the next one, or to its own second try."""
    yield
    cluster.kubectl.run("delete", "pod", "--all", "--grace-period=0", "--force", "--wait=false")
    for node in cluster.state.nodes:
        cluster.local.revive_node(node)
        cluster.kubectl.run("taint", "node", node, "node.kubernetes.io/out-of-service-", check=False)
    everyone = dict.fromkeys(cluster.state.nodes, "True")
    cluster.kubectl.wait("all Ready", lambda: cluster.local.node_readiness() == everyone, 40)


def running_with(text: str) -> bool:
    return subprocess.run(["pgrep", "-f", text], capture_output=True, check=False).returncode == 0


def test_a_killed_node_takes_its_processes_with_it_and_reports_them_when_it_returns(cluster: Cluster) -> None:
    kubectl = cluster.kubectl
    escape = "setsid sleep 7771 & sleep 7772"
    kubectl.apply(
        shell_pod("patient", escape, nodeName="node-1"),
        shell_pod("evicted", "sleep 300", nodeName="node-1", tolerations=EVICT_NOW),
        shell_pod("restarted", "sleep 300", nodeName="node-1", restartPolicy="Always"),
    )
    for name in ("patient", "evicted", "restarted"):
        kubectl.wait_phase(name, "Running")
    cluster.local.kill_node("node-1")
    assert not running_with("sleep 777")
    assert ready(kubectl, "node-1") == "True", "nobody tells the API server"
    kubectl.wait("NotReady", lambda: ready(kubectl, "node-1") == "Unknown", NOTICE_SECONDS)
    kubectl.wait("evicted", lambda: kubectl.get("pod", "evicted")["metadata"].get("deletionTimestamp"))
    taints = {(item["key"], item["effect"]) for item in kubectl.get("node", "node-1")["spec"]["taints"]}
    assert ("node.kubernetes.io/unreachable", "NoExecute") in taints
    time.sleep(3)
    assert kubectl.exists("pod", "evicted"), "nobody can confirm that it is gone: it stays Terminating"
    assert kubectl.get("pod", "patient")["status"]["phase"] == "Running"
    cluster.local.revive_node("node-1")
    kubectl.wait("Ready again", lambda: ready(kubectl, "node-1") == "True")
    kubectl.wait("evicted is gone", lambda: not kubectl.exists("pod", "evicted"))
    ended = main_state(kubectl.wait_phase("patient", "Failed"))["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (255, "Unknown")
    again = kubectl.wait("restarted", lambda: _restarted(kubectl, "restarted"))
    assert again["status"]["containerStatuses"][0]["restartCount"] == 1
    assert [item["ip"] for item in again["status"]["podIPs"]] == [again["status"]["podIP"]]
    kubectl.wait("untainted", lambda: not kubectl.get("node", "node-1")["spec"].get("taints"))
    kubectl.delete_pods("patient", "restarted")


def _restarted(kubectl: Kubectl, name: str) -> Json | None:
    pod = kubectl.get("pod", name)
    return pod if "running" in main_state(pod) and main_state(pod)["running"] and _count(pod) else None


def _count(pod: Json) -> int:
    return int(pod["status"]["containerStatuses"][0]["restartCount"])


def test_a_frozen_node_falls_silent_and_thaws_with_its_pods(cluster: Cluster) -> None:
    kubectl = cluster.kubectl
    kubectl.apply(shell_pod("icy", "while true; do sleep 0.2; done", nodeName="node-2"))
    kubectl.wait_phase("icy", "Running")
    cluster.local.kill_node("node-2", "freeze")
    members = cluster.local.node_processes(cluster.local.state(), "node-2")
    assert {process.status() for process in members} == {"stopped"}
    kubectl.wait("NotReady", lambda: ready(kubectl, "node-2") == "Unknown", NOTICE_SECONDS)
    conditions = {item["type"]: item["status"] for item in kubectl.get("pod", "icy")["status"]["conditions"]}
    assert conditions["Ready"] == "False"
    cluster.local.revive_node("node-2")
    kubectl.wait("Ready again", lambda: ready(kubectl, "node-2") == "True")
    pod = kubectl.get("pod", "icy")
    assert "running" in main_state(pod)
    assert _count(pod) == 0
    kubectl.run("wait", "--for=condition=Ready", "pod/icy", "--timeout=20s")
    kubectl.run("delete", "pod", "icy")


@pytest.mark.skipif(
    partition.missing_requirements() is not None, reason=f"partition needs {partition.missing_requirements()}"
)
def test_a_partitioned_node_hears_and_says_nothing_until_it_is_reconnected(cluster: Cluster) -> None:
    kubectl = cluster.kubectl
    kubectl.apply(
        shell_pod("island", "while true; do date +%s; sleep 0.2; done", nodeName="node-3", tolerations=EVICT_NOW)
    )
    address = kubectl.wait_phase("island", "Running")["status"]["podIP"]
    cluster.local.kill_node("node-3", "partition")
    answer = kubectl.run("logs", "island", "--request-timeout=3s", check=False)
    assert not answer[0].isdigit(), "no log line comes out of the island"
    kubectl.run("delete", "pod", "island", "--wait=false")
    kubectl.wait("NotReady", lambda: ready(kubectl, "node-3") == "Unknown", NOTICE_SECONDS)
    members = cluster.local.node_processes(cluster.local.state(), "node-3")
    assert any("date" in " ".join(process.cmdline()) for process in members), "the pod does not know"
    assert kubectl.exists("pod", "island")
    assert address
    cluster.local.revive_node("node-3")
    kubectl.wait("Ready again", lambda: ready(kubectl, "node-3") == "True", 40)
    kubectl.wait("the deletion arrives", lambda: not kubectl.exists("pod", "island"))


def test_a_deleted_node_object_takes_its_pods(cluster: Cluster) -> None:
    kubectl = cluster.kubectl
    kubectl.apply(shell_pod("orphaned", "sleep 300", nodeName="node-3"))
    kubectl.wait_phase("orphaned", "Running")
    cluster.local.kill_node("node-3")
    kubectl.run("delete", "node", "node-3")
    # A real pod garbage collector looks every 20 s and gives a node 40 s to come back.
    kubectl.wait("the pod goes with its node", lambda: not kubectl.exists("pod", "orphaned"), 90)
    cluster.local.revive_node("node-3")
    kubectl.wait("registered anew", lambda: kubectl.exists("node", "node-3") and ready(kubectl, "node-3") == "True")


def test_an_out_of_service_node_releases_its_terminating_pods(cluster: Cluster) -> None:
    kubectl = cluster.kubectl
    kubectl.apply(shell_pod("stuck", "sleep 300", nodeName="node-2"))
    kubectl.wait_phase("stuck", "Running")
    cluster.local.kill_node("node-2")
    kubectl.wait("NotReady", lambda: ready(kubectl, "node-2") == "Unknown", NOTICE_SECONDS)
    kubectl.run("taint", "node", "node-2", "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute")
    kubectl.wait("released", lambda: not kubectl.exists("pod", "stuck"), 60)
    cluster.local.revive_node("node-2")
    kubectl.run("taint", "node", "node-2", "node.kubernetes.io/out-of-service-")
    kubectl.wait("Ready again", lambda: ready(kubectl, "node-2") == "True")
