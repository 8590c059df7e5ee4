"""Loopback networks: each cluster on this computer gets a 127.N.0.0/16 of its own, each node a /24 of it."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from fcntl import LOCK_EX, flock
from pathlib import Path

# 127.0.0.0/12 is left alone: resolvers (127.0.0.53) and other programs live there.
FIRST, LAST = 16, 127
# Node gids follow from network and node number, below 65536 (the usual map of a user namespace).
FIRST_GID = 30000
# The last sixteenth of a cluster's network belongs to its Services.
LAST_NODE = 239
API_PORT = 6443
S3_PORT = 9000
KUBELET_PORT = 10250
# Not 9090: there Debian's own service listens, on every address.
PROMETHEUS_PORT = 19090


class NetworksExhausted(RuntimeError):
    """Every loopback network is taken by a cluster that still exists."""


def api_address(network: int) -> str:
    """Where the cluster's API server listens."""
    return f"127.{network}.0.1"


def s3_address(network: int) -> str:
    """Where the cluster's S3 server listens."""
    return f"127.{network}.0.2"


def etcd_address(network: int) -> str:
    """Where etcd listens, in a cluster with a control plane of Kubernetes' own."""
    return f"127.{network}.0.3"


def prometheus_address(network: int) -> str:
    """Where Prometheus listens, in a cluster that has one."""
    return f"127.{network}.0.4"


def service_network(network: int) -> ipaddress.IPv4Network:
    """Where the cluster IPs of Services come from."""
    return ipaddress.IPv4Network(f"127.{network}.{LAST_NODE + 1}.0/20")


def node_network(network: int, number: int) -> ipaddress.IPv4Network:
    """The /24 of node `number` (1 to 239); its first address is the node's, the others are pods'. Raises ValueError."""
    if not 1 <= number <= LAST_NODE:
        raise ValueError(f"node number {number}: between 1 and {LAST_NODE}")
    return ipaddress.IPv4Network(f"127.{network}.{number}.0/24")


def node_gid(network: int, number: int) -> int:
    """Group id that every process of the node carries; unique among the clusters of this computer."""
    return FIRST_GID + (network - FIRST) * 256 + number


def _registry() -> Path:
    directory = Path(tempfile.gettempdir()) / f"trireme-local-{os.geteuid()}"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with (directory / "lock").open("w") as lock:
        flock(lock, LOCK_EX)
        yield


def _claims(registry: Path) -> dict[int, Path]:
    """Network -> the directory that holds it; claims of directories that no longer exist are dropped."""
    claims = {}
    for file in registry.glob("network-*.json"):
        number = int(file.stem.removeprefix("network-"))
        owner = Path(json.loads(file.read_text())["directory"])
        if owner.exists():
            claims[number] = owner
        else:
            file.unlink()
    return claims


def _is_free(number: int) -> bool:
    """Nobody listens where this network's API server would."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((api_address(number), API_PORT))
        except OSError:
            return False
    return True


def claim_network(directory: Path) -> int:
    """A network for the cluster in `directory`, the one it has already where it has one. Raises NetworksExhausted."""
    directory = directory.resolve()
    registry = _registry()
    with _locked(registry):
        claims = _claims(registry)
        for number, owner in claims.items():
            if owner == directory:
                return number
        for number in range(FIRST, LAST):
            if number not in claims and _is_free(number):
                claim = registry / f"network-{number}.json"
                claim.write_text(json.dumps({"directory": str(directory)}))
                return number
    raise NetworksExhausted(f"networks 127.{FIRST} to 127.{LAST - 1} are all taken: {sorted(claims)}")


def release_network(directory: Path) -> None:
    """Give the directory's network back."""
    directory = directory.resolve()
    registry = _registry()
    with _locked(registry):
        for number, owner in _claims(registry).items():
            if owner == directory:
                (registry / f"network-{number}.json").unlink(missing_ok=True)
