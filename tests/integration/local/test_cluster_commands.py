"""`trireme local`: idempotent, side by side, nothing left behind; a node alone against any API server."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import boto3
import psutil
import pytest
from local_cluster_tools import Cluster, Kubectl, shell_pod

from trireme_local import partition
from trireme_local.cluster import LocalCluster
from trireme_local.errors import ClusterError

TRIREME = [sys.executable, "-c", "from trireme_cli.local import app; app()"]


def trireme_local(*arguments: str, code: int = 0) -> str:
    result = subprocess.run([*TRIREME, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def processes_naming(text: str) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        words = (process.info["cmdline"] or []) + list((process.info["environ"] or {}).values())
        if process.pid != os.getpid() and any(text in word for word in words):
            found.append(process.pid)
    return found


def test_a_second_cluster_lives_beside_the_first_and_goes_without_a_trace(cluster: Cluster, tmp_path: Path) -> None:
    home = tmp_path / "second"
    first_up = trireme_local("up", "--nodes", "1", "--dir", str(home), "--name", "second")
    try:
        exports = dict(re.findall(r"^export (\w+)=(.*)$", first_up, re.MULTILINE))
        kubectl = Kubectl(Path(exports["KUBECONFIG"]))
        assert kubectl.run("config", "current-context").strip() == "second"
        capacity = kubectl.get("node", "node-1")["status"]["allocatable"]
        assert capacity["trireme.dev/cpu-rank"] == "4"
        secret = kubectl.get("secret", "trireme-store")["data"]
        assert set(secret) == {name for name in exports if name.startswith("AWS_")}
        store = boto3.client(
            "s3",
            endpoint_url=exports["AWS_ENDPOINT_URL_S3"],
            aws_access_key_id=exports["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=exports["AWS_SECRET_ACCESS_KEY"],
            region_name=exports["AWS_REGION"],
        )
        store.put_object(Bucket="trireme", Key="a/b", Body=b"bytes")
        assert store.get_object(Bucket="trireme", Key="a/b")["Body"].read() == b"bytes"
        store.put_object(Bucket="trireme", Key="only/one", Body=b"")
        store.delete_object(Bucket="trireme", Key="only/one")
        assert [item["Key"] for item in store.list_objects_v2(Bucket="trireme")["Contents"]] == ["a/b"]
        store.delete_object(Bucket="trireme", Key="a/b")
        store.head_bucket(Bucket="trireme")
        assert "Contents" not in store.list_objects_v2(Bucket="trireme"), "an empty bucket stays"
        store.put_object(Bucket="trireme", Key="a/b", Body=b"bytes")

        names = {node["metadata"]["name"] for node in _items(kubectl)}
        assert names == {"node-1"}
        kubectl.apply(shell_pod("same-name", "trap '' TERM; sleep 300"))
        cluster.kubectl.apply(shell_pod("same-name", "sleep 300"))
        here = kubectl.wait_phase("same-name", "Running")["status"]["podIP"]
        there = cluster.kubectl.wait_phase("same-name", "Running")["status"]["podIP"]
        assert here.split(".")[1] != there.split(".")[1]

        local, said = LocalCluster(home), list[str]()
        local.up(nodes=1, say=said.append)
        assert said == ["cluster 'second' is already running"]
        trireme_local("kill-node", "node-1", "--dir", str(home))
        assert "dead" in trireme_local("status", "--dir", str(home), code=1)
        with pytest.raises(ClusterError, match="no node 'node-9'"):
            local.kill_node("node-9")

        local.down(keep=True)
        assert processes_naming(str(home)) == []
        local.up(nodes=1, say=said.append)
        assert kubectl.exists("pod", "same-name"), "kept objects are there again"
        assert store.get_object(Bucket="trireme", Key="a/b")["Body"].read() == b"bytes"
    finally:
        trireme_local("down", "--dir", str(home))
    assert processes_naming(str(home)) == []
    assert sorted(path.name for path in home.iterdir()) == [".lock", "logs"]
    with pytest.raises(ClusterError, match="no cluster in"):
        LocalCluster(home).status()
    assert cluster.kubectl.get("pod", "same-name")["status"]["phase"] == "Running"
    cluster.kubectl.delete_pods("same-name")


def _items(kubectl: Kubectl) -> list[dict[str, dict[str, str]]]:
    items: list[dict[str, dict[str, str]]] = kubectl.get("nodes", "--no-headers=true")["items"]
    return items


def test_a_node_alone_joins_any_api_server_and_takes_its_pods_along(cluster: Cluster, tmp_path: Path) -> None:
    kubectl = cluster.kubectl
    command = [*TRIREME, "node", "--kubeconfig", str(kubectl.kubeconfig), "--name", "guest"]
    command += ["--dir", str(tmp_path), "--loopback", "127.251.7.0/24", "--labels", "role=guest"]
    command += ["--capacity", "example.com/odd=3", "--taint", "role=guest:NoSchedule", "--lease-renew-seconds", "1"]
    with (tmp_path / "log").open("w") as log:
        guest = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        kubectl.wait("registered", lambda: kubectl.exists("node", "guest"))
        node = kubectl.get("node", "guest")
        assert node["status"]["capacity"]["example.com/odd"] == "3"
        assert node["metadata"]["labels"]["role"] == "guest"
        kubectl.apply(
            shell_pod(
                "visitor", "echo here; sleep 7391", nodeSelector={"role": "guest"}, tolerations=[{"operator": "Exists"}]
            )
        )
        assert kubectl.wait_phase("visitor", "Running")["status"]["podIP"].startswith("127.251.7.")
        kubectl.wait("log", lambda: kubectl.run("logs", "visitor") == "here\n")
        guest.send_signal(signal.SIGTERM)
        guest.wait(timeout=20)
        assert subprocess.run(["pgrep", "-f", "sleep 7391"], capture_output=True, check=False).returncode == 1
    finally:
        guest.kill()
        kubectl.run("delete", "node", "guest", "--ignore-not-found")
        kubectl.wait("visitor goes", lambda: not kubectl.exists("pod", "visitor"), 90)


def test_what_partition_lacks_is_said(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "missing_requirements", lambda: "CAP_NET_ADMIN (run as root)")
    with pytest.raises(partition.PartitionUnavailable, match="CAP_NET_ADMIN"):
        cluster.local.kill_node("node-1", "partition")
    assert cluster.local.node_readiness()["node-1"] == "True"


def test_commands_without_a_cluster_say_so(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="no cluster in"):
        LocalCluster(tmp_path / "none").kill_node("node-1")
    LocalCluster(tmp_path / "none").down()


def test_the_api_server_may_restart_under_running_pods(cluster: Cluster) -> None:
    kubectl = cluster.kubectl
    kubectl.apply(shell_pod("survivor", "while true; do sleep 0.2; done"))
    kubectl.wait_phase("survivor", "Running")
    server = cluster.local.state().daemons["apiserver"].find()
    assert server is not None
    server.kill()
    time.sleep(1)
    cluster.local.up(nodes=3, say=lambda text: None)
    pod = kubectl.get("pod", "survivor")
    assert pod["status"]["phase"] == "Running"
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
    kubectl.run("delete", "pod", "survivor", "--timeout=30s")
