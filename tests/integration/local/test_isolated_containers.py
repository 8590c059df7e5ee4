"""Containers with file systems of their own: what they can write, what they see, and how they end."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_cluster_tools import Kubectl, main_state, shell_pod

from trireme_local.cluster import LocalCluster
from trireme_local.node.namespaces import MountNamespaces, NamespacesUnavailable

READ_ONLY = {
    "securityContext": {"readOnlyRootFilesystem": True},
    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
}
DATA = [{"name": "data", "emptyDir": {}}]


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalCluster, Kubectl]]:
    try:
        MountNamespaces.probe()
    except NamespacesUnavailable as error:
        pytest.skip(f"no mount namespaces here: {error}")
    local = LocalCluster(tmp_path_factory.mktemp("isolated"))
    try:
        local.up(nodes=1, isolate=True, say=lambda text: None)
        yield local, Kubectl(local.kubeconfig)
    finally:
        local.down()


def test_a_write_outside_the_volumes_fails_and_inside_one_succeeds(isolated: tuple[LocalCluster, Kubectl]) -> None:
    local, kubectl = isolated
    kubectl.apply(
        shell_pod("outside", "touch /tmp/x", container=READ_ONLY, volumes=DATA),
        shell_pod(
            "inside",
            f"echo x > /data/x && cat /data/x && test ! -e {local.kubeconfig}",
            container=READ_ONLY,
            volumes=DATA,
        ),
        shell_pod("open", "touch /tmp/x && test ! -e /data", volumes=DATA),
    )
    assert main_state(kubectl.wait_phase("outside", "Failed"))["terminated"]["exitCode"] == 1
    assert "Read-only file system" in kubectl.run("logs", "outside")
    for pod in ("inside", "open"):
        found = kubectl.wait_phase(pod, "Succeeded", "Failed")
        assert found["status"]["phase"] == "Succeeded", kubectl.run("logs", pod, check=False)
    runtime = kubectl.get("node", "node-1")["status"]["nodeInfo"]["containerRuntimeVersion"]
    assert runtime.startswith("bubblewrap://")


def test_the_grace_and_the_kill_reach_every_process(isolated: tuple[LocalCluster, Kubectl], tmp_path: Path) -> None:
    _, kubectl = isolated
    script = (
        "trap 'echo term > /beats/term; exit 0' TERM; (while :; do date +%s%N > /beats/beat; sleep 0.1; done) & wait"
    )
    kubectl.apply(
        shell_pod(
            "tree",
            script,
            container={"volumeMounts": [{"name": "beats", "mountPath": "/beats"}]},
            volumes=[{"name": "beats", "hostPath": {"path": str(tmp_path)}}],
        )
    )
    kubectl.wait("the pod's child runs", (tmp_path / "beat").exists)
    kubectl.run("delete", "pod", "tree", "--wait=false")
    kubectl.wait("the pod is gone", lambda: not kubectl.exists("pod", "tree"))
    assert (tmp_path / "term").read_text() == "term\n"
    last = (tmp_path / "beat").read_text()
    time.sleep(0.5)
    assert (tmp_path / "beat").read_text() == last
