"""The operator's image, built on a debootstrap base, runs as its chart says: no root, nothing writable but /tmp."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest_apiserver import ApiServerProcess, eventually

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "integration" / "operator")]

import build_operator_image  # noqa: E402
from operator_harness import NAMESPACE, install, kubeconfig  # noqa: E402

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(build_operator_image.missing()), reason=build_operator_image.missing()),
]
ACCOUNT = "var/run/secrets/kubernetes.io/serviceaccount"
KEYS = "etc/trireme-operator"
BUILD_TOOLS = {"cc", "gcc", "g++", "ld", "make", "git", "uv", "pip", "pip3", "wheel"}
# What a container runtime does of a pod's security context, with util-linux alone: a mount namespace, the root
# read-only, /tmp in memory, and user and group without privileges.
CONTAINER = """
mount --bind {root} {root}
mount --rbind /proc {root}/proc
mount --bind /dev {root}/dev
mount -t tmpfs tmpfs {root}/tmp
mount -o remount,bind,ro {root}
exec chroot --userspec={user} --groups= {root} env -i {command}
"""


@dataclass
class Container:
    """A container's root and the image's settings."""

    root: Path
    config: dict[str, Any]

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        """Run a command as the image's user in a read-only root."""
        variables = [*self.config["Env"], *(f"{name}={value}" for name, value in environment.items())]
        script = CONTAINER.format(
            root=self.root, user=self.config["User"], command=shlex.join([*variables, *arguments])
        )
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit status and output of a command."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    """A container of a fresh build; the base below it is made once."""
    build_operator_image.main([])
    storage = build_operator_image.ROOT / ".trireme" / "images"
    buildah = build_operator_image.Buildah(storage.resolve())
    config = json.loads(buildah("inspect", "--type", "image", build_operator_image.TAG))["OCIv1"]["config"]
    with buildah.mounted(build_operator_image.TAG) as root:
        yield Container(root, config)


def test_no_tool_that_builds_is_left_and_nothing_of_the_trainer(container: Container) -> None:
    folders = ("usr/bin", "usr/local/bin", "usr/sbin", "opt/trireme/bin")
    programs = {path.name for folder in folders for path in (container.root / folder).iterdir()}
    assert {"python3.11", "kopf"} <= programs
    assert programs & BUILD_TOOLS == set()
    (packages,) = (container.root / "opt/trireme/lib").glob("python3.11/site-packages")
    installed = {path.name for path in packages.iterdir()}
    assert {"trireme_operator", "kopf"} <= installed
    assert installed & {"torch", "boto3", "pip", "setuptools", "megatron"} == set()
    assert list((packages / "trireme_operator/__pycache__").glob("main.*.pyc"))


def test_the_root_is_not_written_to_and_the_user_has_a_number(container: Container) -> None:
    assert container.config["User"] == "1000:1000"
    status, output = container.run("sh", "-c", "id -u; touch /tmp/x && echo tmp; touch /opt/trireme/x")
    assert status != 0
    assert output.splitlines()[:2] == ["1000", "tmp"]
    assert "Read-only file system" in output


def test_an_operator_without_its_key_says_so_and_ends(container: Container) -> None:
    status, output = container.run(*container.config["Entrypoint"], "--key-file=/nowhere/key")
    assert status != 0
    assert "/nowhere" in output


def test_the_operator_gets_ready_under_its_own_account(
    container: Container, apiserver: ApiServerProcess, tmp_path: Path
) -> None:
    install(apiserver)
    account = yaml.safe_load(kubeconfig(apiserver, tmp_path / "kubeconfig").read_text())["users"][0]["user"]
    mounted(container, ACCOUNT, {"token": account["token"], "ca.crt": ca(apiserver), "namespace": NAMESPACE})
    mounted(container, KEYS, {"key": "k" * 64})
    port = free_port()
    process = container.start(
        *container.config["Entrypoint"],
        *("--http-host=127.0.0.1", f"--http-port={port}", f"--lease-namespace={NAMESPACE}"),
        KUBERNETES_SERVICE_HOST="127.0.0.1",
        KUBERNETES_SERVICE_PORT=str(apiserver.port),
        POD_NAME="operator-0",
        POD_NAMESPACE=NAMESPACE,
        POD_IP="127.0.0.1",
    )
    try:
        eventually(lambda: process.poll() is not None or answers(port, "/readyz"), seconds=120)
        assert process.poll() is None, process.communicate()[0]
        lease = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/trireme-operator"
        held = eventually(lambda: holder(apiserver, lease), seconds=60)
        assert held.startswith("operator-0_")
        assert answers(port, "/metrics")
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "Traceback" not in output


def mounted(container: Container, folder: str, files: dict[str, str]) -> None:
    """Put the files of a pod's volume where the pod would have them."""
    # /var/run leads to /run, from the container's root and not from this computer's.
    target = container.root / folder.replace("var/run", "run")
    target.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (target / name).write_text(content)
        os.chown(target / name, 0, 1000)
        (target / name).chmod(0o440)


def ca(server: ApiServerProcess) -> str:
    """The certificate that the server's own is signed by."""
    return (server.data_dir / "pki" / "ca.crt").read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def holder(server: ApiServerProcess, lease: str) -> str:
    """Who holds the Lease; "" for nobody."""
    answer = server.request("GET", lease)
    return str(answer.body["spec"].get("holderIdentity") or "") if answer.status == 200 else ""
