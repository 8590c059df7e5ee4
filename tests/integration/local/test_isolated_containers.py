"""Containers with file systems of their own: what they can write, what they see, and how they end."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_cluster_tools import Kubectl, main_state, shell_pod

from trireme_local.cluster import LocalCluster
from trireme_local.node.namespaces import MountNamespaces, NamespacesUnavailable
from trireme_local.sessions import marked_processes, node_marker

Json = dict[str, Any]
DATA = [{"name": "data", "emptyDir": {}}]
NODE = "node-1"


def isolated_pod(name: str, script: str, *mounts: Json, container: Json | None = None, **spec: Any) -> Json:
    """A pod that asks for a read-only root, with the volume `data` at /data unless it mounts others."""
    main = {
        "securityContext": {"readOnlyRootFilesystem": True},
        "volumeMounts": [*mounts] or [{"name": "data", "mountPath": "/data"}],
        **(container or {}),
    }
    return shell_pod(name, script, container=main, **{"volumes": DATA, **spec})


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, kubectl_program: str) -> Iterator[LocalCluster]:
    """A cluster as `trireme local up` makes it."""
    try:
        MountNamespaces.probe()
    except NamespacesUnavailable as error:
        pytest.skip(f"isolation does not work here: {error}")
    local = LocalCluster(tmp_path_factory.mktemp("isolated"))
    try:
        local.up(nodes=1, say=lambda text: None)
        yield local
    finally:
        local.down()


@pytest.fixture
def kubectl(local: LocalCluster) -> Kubectl:
    return Kubectl(local.kubeconfig)


def succeeded(kubectl: Kubectl, pod: str) -> str:
    """What the pod has said, once it has ended well."""
    found = kubectl.wait_phase(pod, "Succeeded", "Failed")
    said = kubectl.run("logs", pod, check=False)
    assert found["status"]["phase"] == "Succeeded", f"{said}\n{main_state(found)}"
    return said


def test_a_write_outside_the_volumes_fails_and_inside_one_succeeds(local: LocalCluster, kubectl: Kubectl) -> None:
    kubectl.apply(
        *(isolated_pod(f"outside{number}", f"touch {path}") for number, path in enumerate(("/x", "/tmp/x", "/etc/x"))),
        isolated_pod("inside", f"echo x > /data/x && cat /data/x && test ! -e {local.kubeconfig}"),
    )
    for number in range(3):
        assert main_state(kubectl.wait_phase(f"outside{number}", "Failed"))["terminated"]["exitCode"] == 1
        assert "Read-only file system" in kubectl.run("logs", f"outside{number}")
    assert succeeded(kubectl, "inside") == "x\n"
    runtime = kubectl.get("node", NODE)["status"]["nodeInfo"]["containerRuntimeVersion"]
    assert runtime.startswith("bubblewrap://")


def test_a_pod_that_does_not_ask_for_it_keeps_the_files_of_this_computer(
    local: LocalCluster, kubectl: Kubectl, tmp_path: Path
) -> None:
    script = f"cat {local.kubeconfig} > {tmp_path}/copy && touch $HOME/x && echo y > /data/y && cat /data/y"
    kubectl.apply(
        shell_pod("open", script, container={"volumeMounts": [{"name": "data", "mountPath": "/data"}]}, volumes=DATA)
    )
    assert succeeded(kubectl, "open") == "y\n"
    assert (tmp_path / "copy").read_text() == local.kubeconfig.read_text()


def test_a_container_that_does_not_ask_for_it_beside_one_that_does_writes_to_a_root_of_its_own(
    kubectl: Kubectl,
) -> None:
    pod = isolated_pod("mixed", "until [ -e /data/x ]; do sleep 0.05; done; cat /data/x; test ! -e /work")
    mount = {"name": "data", "mountPath": "/elsewhere"}
    script = "mkdir /work && echo mine > /work/x && cp /work/x /elsewhere/.new && mv /elsewhere/.new /elsewhere/x"
    writer = {"name": "writer", "image": "busybox", "command": ["sh", "-c", script], "volumeMounts": [mount]}
    pod["spec"]["containers"].append(writer)
    kubectl.apply(pod)
    assert kubectl.wait_phase("mixed", "Succeeded", "Failed")["status"]["phase"] == "Succeeded"
    assert kubectl.run("logs", "mixed", "-c", "main") == "mine\n"
    assert not Path("/work/x").exists()


def test_volumes_are_at_their_mount_paths(kubectl: Kubectl, tmp_path: Path) -> None:
    """Named by nothing that could be rewritten: each path is put together by the shell."""
    (tmp_path / "given").write_text("of the host\n")
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "y").write_text("sub\n")
    sources = [
        {"configMap": {"name": "shown"}},
        {"secret": {"name": "hidden"}},
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
        {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
    ]
    volumes = [
        {"name": "shown", "configMap": {"name": "shown"}},
        {"name": "hidden", "secret": {"secretName": "hidden"}},
        {"name": "all", "projected": {"sources": sources}},
        {"name": "host", "hostPath": {"path": str(tmp_path)}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "null", "hostPath": {"path": "/dev/null"}},
    ]
    mounts = [
        {"name": "shown", "mountPath": "/etc/shown"},
        {"name": "hidden", "mountPath": "/etc/hidden", "readOnly": True},
        {"name": "all", "mountPath": "/var/run/all"},
        {"name": "host", "mountPath": "/host", "readOnly": True},
        {"name": "host", "mountPath": "/part", "subPath": "part"},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "null", "mountPath": "/sink"},
    ]
    script = """
    e=/etc; cat $e/shown/color $e/hidden/key; s=/var/run; cat $s/all/color $s/all/key; cat $s/all/name; echo
    test -s $s/all/token && h=/host && cat $h/given && p=/part && cat $p/y && echo z > $p/z
    test -s $s/secrets/kubernetes.io/serviceaccount/token && echo account
    for d in $e/shown $e/hidden $s/all $h; do ! touch $d/x 2>/dev/null || echo written to $d; done
    t=/tmp; echo x > $t/x && d=/dev; echo x > $d/shm/x && stat -f -c %T $d/shm; echo gone > /sink; ls -A $d/shm
    echo the end > $d/termination-log
    """
    kubectl.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shown"}, "data": {"color": "blue\n"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hidden"}, "stringData": {"key": "s3cret\n"}},
        isolated_pod("mounted", script, *mounts, volumes=volumes),
        isolated_pod("unmounted", "stat -f -c %s:%b:%T /dev/shm; ls -A /tmp"),
    )
    said = succeeded(kubectl, "mounted").splitlines()
    assert said == ["blue", "s3cret", "blue", "s3cret", "mounted", "of the host", "sub", "account", "tmpfs", "x"]
    assert (tmp_path / "part" / "z").read_text() == "z\n"
    assert main_state(kubectl.get("pod", "mounted"))["terminated"]["message"] == "the end\n"
    size, blocks, kind = succeeded(kubectl, "unmounted").strip().split(":")
    assert (int(size) * int(blocks), kind) == (64 << 20, "tmpfs")


def test_probes_and_hooks_run_inside_and_in_the_working_directory(kubectl: Kubectl, tmp_path: Path) -> None:
    probe = ["sh", "-c", "test -e ready && test $PWD = /data/work && ! touch /x"]
    hook = ["sh", "-c", "echo prepared > hook && cp hook /host/hook"]
    container = {
        "workingDir": "/data/work",
        "readinessProbe": {"exec": {"command": probe}, "periodSeconds": 1},
        "lifecycle": {"preStop": {"exec": {"command": hook}}},
    }
    mounts = [{"name": "data", "mountPath": "/data"}, {"name": "host", "mountPath": "/host"}]
    volumes = [*DATA, {"name": "host", "hostPath": {"path": str(tmp_path)}}]
    script = "trap 'exit 0' TERM; touch ready; cd /; while :; do sleep 0.1; done"
    kubectl.apply(isolated_pod("probed", script, *mounts, container=container, volumes=volumes))
    kubectl.run("wait", "--for=condition=Ready", "pod/probed", "--timeout=30s")
    kubectl.run("delete", "pod", "probed", "--wait=false")
    kubectl.wait("the pod is gone", lambda: not kubectl.exists("pod", "probed"))
    assert (tmp_path / "hook").read_text() == "prepared\n"


def test_ends_are_told_apart(kubectl: Kubectl) -> None:
    hungry = "x=y; while :; do x=$x$x; done"
    kubectl.apply(
        isolated_pod("code", "exit 7"),
        isolated_pod("killed", "kill -9 $$$$"),
        isolated_pod("missing", "", container={"command": ["/no/such/program"]}),
        isolated_pod("hungry", hungry, container={"resources": {"limits": {"memory": "64Mi"}}}),
    )
    ends = {}
    for pod in ("code", "killed", "missing", "hungry"):
        ended = main_state(kubectl.wait_phase(pod, "Failed", timeout_seconds=60))["terminated"]
        ends[pod] = (ended["exitCode"], ended["reason"])
    assert ends == {
        "code": (7, "Error"),
        "killed": (137, "Error"),
        "missing": (128, "StartError"),
        "hungry": (137, "OOMKilled"),
    }


def test_the_grace_and_the_kill_reach_every_process(kubectl: Kubectl, tmp_path: Path) -> None:
    script = (
        "trap 'echo term > /beats/term; exit 0' TERM; (while :; do date +%s%N > /beats/beat; sleep 0.1; done) & wait"
    )
    kubectl.apply(beating("tree", script, tmp_path))
    kubectl.wait("the pod's child runs", (tmp_path / "beat").exists)
    kubectl.run("delete", "pod", "tree", "--wait=false")
    kubectl.wait("the pod is gone", lambda: not kubectl.exists("pod", "tree"))
    assert (tmp_path / "term").read_text() == "term\n"
    assert stands_still(tmp_path / "beat")


def beating(name: str, script: str, directory: Path, **spec: Any) -> Json:
    volumes = [{"name": "beats", "hostPath": {"path": str(directory)}}]
    return isolated_pod(name, script, {"name": "beats", "mountPath": "/beats"}, volumes=volumes, **spec)


def stands_still(beat: Path) -> bool:
    last = beat.read_text()
    time.sleep(0.5)
    return beat.read_text() == last


def test_a_frozen_node_and_a_killed_one_take_their_containers_along(
    local: LocalCluster, kubectl: Kubectl, tmp_path: Path
) -> None:
    """A process that left the node's session included, and the makers of a namespace that are at work."""
    script = "id -g > /beats/group; setsid sh -c 'while :; do date +%s%N > /beats/beat; sleep 0.1; done' & wait"
    kubectl.apply(beating("beating", script, tmp_path, restartPolicy="Always"))
    kubectl.wait("the pod's child runs", (tmp_path / "beat").exists)
    group = local.state().nodes[NODE].gid
    assert group is None or int((tmp_path / "group").read_text()) == group, "a partition matches by this group"
    local.kill_node(NODE, "freeze")
    assert stands_still(tmp_path / "beat")
    local.revive_node(NODE)
    kubectl.wait("it goes on", lambda: not stands_still(tmp_path / "beat"))
    # Containers are being started when the power goes.
    kubectl.apply(*(isolated_pod(f"young{number}", "sleep 60") for number in range(6)))
    kubectl.wait("some have been seen", lambda: _processes(local) > 4)
    local.kill_node(NODE)
    assert _processes(local) == 0
    assert stands_still(tmp_path / "beat")
    local.revive_node(NODE)
    kubectl.wait("it beats again", lambda: not stands_still(tmp_path / "beat"), 60)
    status = kubectl.get("pod", "beating")["status"]["containerStatuses"][0]
    assert status["lastState"]["terminated"]["exitCode"] == 255, json.dumps(status)
    kubectl.delete_pods("beating", *(f"young{number}" for number in range(6)))


def _processes(local: LocalCluster) -> int:
    return len(marked_processes(node_marker(local.directory / "nodes" / NODE, NODE)))
