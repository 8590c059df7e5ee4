"""`trireme local up --control-plane`: Kubernetes' own programs in place of the local API server.

Stand-ins with the programs' names and flags show that everything is started, told where the others are, and stopped;
where KUBEBUILDER_ASSETS has the real programs, every other test of this folder runs on them too.
"""

import sys
from pathlib import Path

import pytest
from local_cluster_tools import Kubectl, shell_pod

from trireme_local.cluster import LocalCluster
from trireme_local.errors import ClusterError

PRELUDE = f"""#!{sys.executable}
import os, sys
from pathlib import Path
flags = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
def become(*arguments):
    os.execv(sys.executable, [sys.executable, "-m", *arguments])
# The real programs give up after ten seconds, which no test should wait.
def need_api_server():
    import ssl, urllib.request, yaml
    url = yaml.safe_load(Path(flags["kubeconfig"]).read_text())["clusters"][0]["cluster"]["server"]
    urllib.request.urlopen(url + "/healthz", timeout=5, context=ssl._create_unverified_context())
"""
PROGRAMS = {
    "etcd": """
import signal, socket
host, port = flags["listen-client-urls"].removeprefix("http://").split(":")
listener = socket.create_server((host, int(port)))
signal.pause()
""",
    # Like the real one, it waits for etcd, which is started at the same time; it takes its time.
    "kube-apiserver": """
import socket, time
host, port = flags["etcd-servers"].removeprefix("http://").split(":")
patience = time.monotonic() + 20.0
while True:
    try:
        socket.create_connection((host, int(port)), 10).close()
        break
    except ConnectionRefusedError:
        if time.monotonic() > patience:
            raise
        time.sleep(0.1)
time.sleep(3)
for name in ("tls-cert-file", "tls-private-key-file", "service-account-signing-key-file", "service-account-key-file"):
    assert Path(flags[name]).is_file(), name
data = Path(flags["token-auth-file"]).parent.parent
become("trireme_local.apiserver", "--data-dir", str(data), "--bind", flags["bind-address"],
       "--port", flags["secure-port"])
""",
    "kube-controller-manager": """
need_api_server()
assert Path(flags["root-ca-file"]).is_file()
grace = flags["node-monitor-grace-period"].removesuffix("s")
become("trireme_local.controllers", "--kubeconfig", flags["kubeconfig"], "--node-monitor-grace-seconds", grace,
       "--without", "scheduler")
""",
    "kube-scheduler": """
need_api_server()
become("trireme_local.controllers", "--kubeconfig", flags["kubeconfig"], "--without", "controller-manager")
""",
}


def binaries(folder: Path, *names: str) -> Path:
    """A directory with stand-ins for some of the programs."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text(PRELUDE + PROGRAMS[name])
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.usefixtures("kubectl_program")
@pytest.mark.parametrize("whole", [False, True], ids=["only-the-api-server", "with-scheduler-and-controllers"])
def test_pods_run_on_a_control_plane_of_named_binaries(tmp_path: Path, whole: bool) -> None:
    names = ("etcd", "kube-apiserver", *(("kube-controller-manager", "kube-scheduler") if whole else ()))
    local = LocalCluster(tmp_path / "cluster")
    try:
        state = local.up(nodes=1, control_plane=binaries(tmp_path / "bin", *names), say=lambda text: None)
        assert {"etcd", "apiserver"} < set(state.daemons)
        assert ("scheduler" in state.daemons) == ("controller-manager" in state.daemons) == whole
        kubectl = Kubectl(local.kubeconfig)
        kubectl.apply(shell_pod("guest", "echo hello"))
        kubectl.wait_phase("guest", "Succeeded")
        assert kubectl.run("logs", "guest") == "hello\n"
        kubectl.run("delete", "pod", "guest")
        records = list(state.daemons.values())
    finally:
        local.down()
    assert [record for record in records if record.find()] == []


def test_a_directory_without_the_programs_is_refused_by_name(tmp_path: Path) -> None:
    folder = binaries(tmp_path / "bin", "etcd")
    with pytest.raises(ClusterError, match=f"no kube-apiserver in {folder}"):
        LocalCluster(tmp_path / "cluster").up(nodes=1, control_plane=folder, say=lambda text: None)


def test_an_existing_cluster_does_not_silently_stay_another_one(tmp_path: Path) -> None:
    local = LocalCluster(tmp_path / "cluster")
    quiet = {"say": lambda text: None}
    try:
        local.up(nodes=1, capacity={"cpu": "2"}, **quiet)
        with pytest.raises(ClusterError, match=r"--capacity of node-1 is .* take the cluster down first"):
            local.up(nodes=1, capacity={"cpu": "3"}, **quiet)
        with pytest.raises(ClusterError, match=r"--node-grace-seconds is 8\.0 and cannot become 20"):
            local.up(nodes=1, grace_seconds=20.0, **quiet)
        state = local.up(nodes=2, **quiet)
        assert state.nodes["node-2"].capacity == {"cpu": "2"}, "a new node is like the others"
    finally:
        local.down()
