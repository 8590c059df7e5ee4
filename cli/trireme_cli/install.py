"""`trireme install` and `trireme operator`: CRDs, RBAC, and an operator process outside the cluster."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from trireme_cli.assets import crd_manifests, operator_rules
from trireme_cli.cluster import Cluster, ClusterError
from trireme_cli.resources import Kubeconfig

NAMESPACE = "trireme-system"
ACCOUNT = "trireme-operator"
TOKEN_SECONDS = 7 * 24 * 3600
READY_SECONDS = 60.0


@dataclass
class OperatorProcess:
    """An operator started by the command line."""

    process: subprocess.Popen[bytes]
    log: Path


def install(kubeconfig: Kubeconfig = None) -> None:
    """Create or update Trireme's CRDs and the operator's account, roles and bindings."""
    cluster = Cluster(kubeconfig)
    for label in install_into(cluster):
        print(f"{label} serverside-applied")


def install_into(cluster: Cluster) -> list[str]:
    """Apply CRDs and RBAC and wait until the CRDs are served; returns what was applied."""
    labels = []
    for manifest in [*crd_manifests(), *rbac_manifests()]:
        cluster.apply(manifest, NAMESPACE)
        labels.append(f"{manifest['kind'].lower()}/{manifest['metadata']['name']}")
    for crd in crd_manifests():
        _wait_established(cluster, crd["metadata"]["name"])
    return labels


def rbac_manifests() -> list[dict[str, Any]]:
    """Namespace, account, roles and bindings of an operator that serves the whole cluster."""
    rules = operator_rules()
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}
    rbac = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": NAMESPACE}},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": ACCOUNT},
            "rules": [*rules["namespaced"], *rules["nodes"]],
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": ACCOUNT},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": ACCOUNT},
            "subjects": [subject],
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "Role",
            "metadata": {"name": ACCOUNT, "namespace": NAMESPACE},
            "rules": rules["leaderElection"],
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": ACCOUNT, "namespace": NAMESPACE},
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": ACCOUNT},
            "subjects": [subject],
        },
    ]


def run_operator(
    kubeconfig: Kubeconfig = None,
    directory: Annotated[Path, typer.Option("--dir", help="For its kubeconfig and key.")] = Path(".trireme/operator"),
    http_port: Annotated[int, typer.Option(help="Port of /metrics, /healthz and /readyz; 0 takes any.")] = 8080,
) -> None:
    """Run the operator in the foreground, under its own service account."""
    cluster = Cluster(kubeconfig)
    command = _operator_command(cluster, directory, http_port)
    os.execv(command[0], command)  # no parent that could be killed and leave the operator behind


def start_operator(cluster: Cluster, directory: Path, *, http_port: int = 0) -> OperatorProcess:
    """Start the operator in the background; its log is DIRECTORY/operator.log. Raises ClusterError if it exits."""
    command = _operator_command(cluster, directory, http_port)
    log = directory / "operator.log"
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    started = OperatorProcess(process, log)
    try:
        process.wait(1.0)  # a wrong flag or an unreadable key shows at once
    except subprocess.TimeoutExpired:
        return started
    except BaseException:
        stop_operator(started)  # nobody else knows of it yet
        raise
    raise ClusterError(0, f"the operator exited with code {process.returncode}; see {log}")


def stop_operator(operator: OperatorProcess) -> None:
    """End the operator's process; SIGKILL when it does not go within ten seconds."""
    operator.process.send_signal(signal.SIGTERM)
    try:
        operator.process.wait(10)
    except subprocess.TimeoutExpired:
        operator.process.kill()
        operator.process.wait()


def write_operator_kubeconfig(cluster: Cluster, path: Path) -> None:
    """A kubeconfig with a token of the operator's account, and nothing of the user's own access."""
    request = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": TOKEN_SECONDS},
    }
    path_of_token = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{ACCOUNT}/token"
    token = cluster.request("POST", path_of_token, request)["status"]["token"]
    path.parent.mkdir(parents=True, exist_ok=True)
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": ACCOUNT,
        "clusters": [{"name": "cluster", "cluster": cluster.connection()}],
        "users": [{"name": ACCOUNT, "user": {"token": token}}],
        "contexts": [{"name": ACCOUNT, "context": {"cluster": "cluster", "user": ACCOUNT}}],
    }
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        yaml.safe_dump(config, file)


def _operator_command(cluster: Cluster, directory: Path, http_port: int) -> list[str]:
    kubeconfig = directory / "kubeconfig"
    write_operator_kubeconfig(cluster, kubeconfig)
    return [
        sys.executable,
        "-m",
        "trireme_operator",
        *("--kubeconfig", str(kubeconfig)),
        *("--key-file", str(directory / "key")),
        *("--lease-namespace", NAMESPACE),
        *("--http-host", "127.0.0.1"),
        *("--http-port", str(http_port)),
    ]


def _wait_established(cluster: Cluster, name: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        crd = cluster.request("GET", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
        conditions = {c["type"]: c["status"] for c in crd.get("status", {}).get("conditions", [])}
        if conditions.get("Established") == "True":
            return
        time.sleep(0.1)  # the API server offers no blocking wait for a condition
    raise ClusterError(504, f"{name} was not established within {READY_SECONDS:.0f} s")
