"""Cutting a node from the network with nftables, by the group id that all its processes carry."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import psutil

_CAP_SETGID, _CAP_NET_ADMIN = 6, 12


class PartitionUnavailable(RuntimeError):
    """This computer cannot cut a node off; the message says what is needed."""


def _capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def missing_requirements() -> str | None:
    """What this process lacks to partition nodes, None when nothing."""
    capabilities = _capabilities()
    if not capabilities & (1 << _CAP_NET_ADMIN):
        return "CAP_NET_ADMIN (run as root)"
    if shutil.which("nft") is None:
        return "the nft program (Debian and Ubuntu: apt-get install nftables)"
    return None


def can_set_gid(gid: int) -> bool:
    """True when this process may give its children the group id."""
    if not _capabilities() & (1 << _CAP_SETGID):
        return False
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError):
            os.setgid(gid)
            os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _nft(script: str) -> None:
    result = subprocess.run(["nft", "-f", "-"], input=script, text=True, capture_output=True, check=False)
    if result.returncode != 0:
        raise PartitionUnavailable(f"nft refused the rules: {result.stderr.strip()}")


def table_name(network: int) -> str:
    """The cluster's nftables table."""
    return f"trireme_local_{network}"


def _crossing(processes: Iterable[psutil.Process]) -> list[tuple[str, int, str, int]]:
    """Open TCP connections of the processes with peers outside the node, both directions of each.

    A connection stays inside when its other end is a socket of the node too.
    """
    local_ends: set[tuple[str, int]] = set()
    connections = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            for connection in process.net_connections("tcp4"):
                if connection.raddr:
                    connections.append((connection.laddr, connection.raddr))
                    local_ends.add((connection.laddr.ip, connection.laddr.port))
    tuples = []
    for local, remote in connections:
        if (remote.ip, remote.port) in local_ends:
            continue
        tuples += [(local.ip, local.port, remote.ip, remote.port), (remote.ip, remote.port, local.ip, local.port)]
    return sorted(set(tuples))


def cut(network: int, node: str, gid: int, subnet: ipaddress.IPv4Network, processes: Iterable[psutil.Process]) -> None:
    """Drop every packet between the node's processes and all others. Raises `PartitionUnavailable`.

    New connections are stopped by group id (outwards) and by address (inwards). Open ones are dropped by
    their address pairs: what the outside sends to a client of the node carries neither.
    """
    if missing := missing_requirements():
        raise PartitionUnavailable(f"partition needs {missing}")
    table, chain = table_name(network), f"node_{node.replace('-', '_').replace('.', '_')}"
    mend(network, node)
    rules = f"""
add table inet {table}
add set inet {table} {chain}_open {{ type ipv4_addr . inet_service . ipv4_addr . inet_service; }}
add chain inet {table} {chain} {{ type filter hook output priority 0; policy accept; }}
add rule inet {table} {chain} ip saddr . tcp sport . ip daddr . tcp dport @{chain}_open drop
add rule inet {table} {chain} meta skgid {gid} ip daddr {subnet} accept
add rule inet {table} {chain} meta skgid {gid} ip saddr {subnet} ip daddr 127.0.0.1 accept
add rule inet {table} {chain} meta skgid {gid} drop
add rule inet {table} {chain} ip daddr {subnet} drop
"""
    _nft(rules)
    # Only now, when no new connection can be made, the list of open ones is complete.
    elements = ", ".join(f"{a} . {p} . {b} . {q}" for a, p, b, q in _crossing(processes))
    if elements:
        _nft(f"add element inet {table} {chain}_open {{ {elements} }}")


def mend(network: int, node: str) -> bool:
    """Remove the node's rules; True when there were any."""
    table, chain = table_name(network), f"node_{node.replace('-', '_').replace('.', '_')}"
    if missing_requirements():
        return False
    listed = subprocess.run(["nft", "list", "chain", "inet", table, chain], capture_output=True, check=False)
    if listed.returncode != 0:
        return False
    _nft(f"delete chain inet {table} {chain}\ndelete set inet {table} {chain}_open\n")
    return True


def mend_all(network: int) -> None:
    """Remove every rule of the cluster."""
    if missing_requirements() is None:
        subprocess.run(["nft", "delete", "table", "inet", table_name(network)], capture_output=True, check=False)
