"""Command lines of a cluster's processes."""

from __future__ import annotations

import sys
from pathlib import Path

from trireme_local import isolation, s3
from trireme_local import network as net
from trireme_local.control_plane import RealControlPlane
from trireme_local.state import ClusterState

Command = tuple[list[str], dict[str, str]]
"""Arguments, and what is added to the environment."""


def api_directory(directory: Path) -> Path:
    """The API server's data."""
    return directory / "apiserver"


def admin_kubeconfig(directory: Path) -> Path:
    """The administrator's kubeconfig, written by the API server or for it."""
    return api_directory(directory) / "admin.kubeconfig"


def commands(directory: Path, state: ClusterState) -> dict[str, Command]:
    """Daemon -> command, in the order in which they start. Raises `ClusterError`."""
    daemons: dict[str, Command] = {}
    controllers = _controllers(directory, state)
    if state.control_plane is None:
        daemons["apiserver"] = (_local_apiserver(directory, state), {})
    else:
        real = _real_control_plane(directory, state)
        real.prepare()
        daemons |= {name: (command, {}) for name, command in real.commands().items()}
        controllers += [f"--without={name}" for name in _done_by(real)]
    return daemons | {
        "s3": _s3(directory, state),
        "controllers": (controllers, {}),
        "proxy": (_proxy(directory), {}),
    }


def _done_by(real: RealControlPlane) -> list[str]:
    """What the local controllers leave to the control plane's own."""
    return [
        *(["controller-manager"] if real.has_controller_manager else []),
        *(["scheduler"] if real.has_scheduler else []),
    ]


def _real_control_plane(directory: Path, state: ClusterState) -> RealControlPlane:
    return RealControlPlane(
        binaries=Path(state.control_plane or ""),
        data=api_directory(directory),
        address=net.api_address(state.network),
        port=net.API_PORT,
        etcd_address=net.etcd_address(state.network),
        grace_seconds=state.grace_seconds,
        service_network=net.service_network(state.network),
    )


def _local_apiserver(directory: Path, state: ClusterState) -> list[str]:
    module = [sys.executable, "-m", "trireme_local.apiserver", "--data-dir", str(api_directory(directory))]
    module += ["--bind", net.api_address(state.network), "--port", str(net.API_PORT)]
    return [*module, "--service-cluster-ip-range", str(net.service_network(state.network))]


def _s3(directory: Path, state: ClusterState) -> Command:
    data = directory / "s3"
    (data / state.store.bucket).mkdir(parents=True, exist_ok=True)
    return s3.serve_command(data, net.s3_address(state.network), net.S3_PORT, state.store)


def _controllers(directory: Path, state: ClusterState) -> list[str]:
    module = [sys.executable, "-m", "trireme_local.controllers", "--kubeconfig", str(admin_kubeconfig(directory))]
    return [*module, "--node-monitor-grace-seconds", str(state.grace_seconds)]


def _proxy(directory: Path) -> list[str]:
    return [sys.executable, "-m", "trireme_local.proxy", "--kubeconfig", str(admin_kubeconfig(directory))]


def node_command(directory: Path, node_directory: Path, state: ClusterState, node: str) -> list[str]:
    """The command of one worker node that keeps its files in `node_directory`."""
    entry = state.nodes[node]
    command = [sys.executable, "-m", "trireme_local.node", "--name", node]
    command += ["--kubeconfig", str(admin_kubeconfig(directory)), "--dir", str(node_directory)]
    command += ["--loopback", str(net.node_network(state.network, entry.number))]
    command += ["--lease-duration-seconds", str(int(state.grace_seconds))]
    command += ["--lease-renew-seconds", str(state.grace_seconds / 4)]
    for option, pairs in (("--capacity", entry.capacity), ("--labels", entry.labels)):
        if pairs:
            command += [option, ",".join(f"{key}={value}" for key, value in pairs.items())]
    if entry.gid is not None:
        command += ["--gid", str(entry.gid)]
    if entry.image_table:
        command += ["--images", entry.image_table]
    if state.isolate is not None:
        command += ["--isolation", isolation.named(state.isolate)]
    return command
