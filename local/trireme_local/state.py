"""What a cluster remembers between two commands: cluster.json in its directory."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trireme_local.errors import ClusterError
from trireme_local.processes import ProcessRecord
from trireme_local.s3 import StoreAccess

FILE = "cluster.json"


@dataclass
class NodeState:
    """One worker node."""

    number: int
    capacity: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    gid: int | None = None
    image_table: str | None = None
    process: ProcessRecord | None = None


@dataclass
class ClusterState:
    """The whole cluster."""

    name: str
    network: int
    grace_seconds: float
    store: StoreAccess
    control_plane: str | None = None
    prometheus: bool = False
    scraped: list[str] = field(default_factory=list)
    """HOST:PORT of what Prometheus scrapes beside pods."""
    nodes: dict[str, NodeState] = field(default_factory=dict)
    daemons: dict[str, ProcessRecord] = field(default_factory=dict)

    @classmethod
    def load(cls, directory: Path) -> ClusterState | None:
        """The state kept in the directory, None when there is none."""
        path = directory / FILE
        if not path.exists():
            return None
        raw: dict[str, Any] = json.loads(path.read_text())
        raw["store"] = StoreAccess(**raw["store"])
        raw["daemons"] = {name: ProcessRecord(**record) for name, record in raw["daemons"].items()}
        for node in raw["nodes"].values():
            node["process"] = ProcessRecord(**node["process"]) if node["process"] else None
        raw["nodes"] = {name: NodeState(**node) for name, node in raw["nodes"].items()}
        return cls(**raw)

    def save(self, directory: Path) -> None:
        """Replace the file; only its owner may read it (it holds the store's keys)."""
        path = directory / FILE
        fresh = path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps(dataclasses.asdict(self), indent=2))
        fresh.replace(path)


def refuse_changes(
    state: ClusterState,
    name: str | None,
    grace_seconds: float | None,
    control_plane: Path | None,
    capacity: dict[str, str] | None,
    labels: dict[str, str] | None,
) -> None:
    """Raise `ClusterError` where `up` asks an existing cluster to be another one; None asks for nothing."""
    wanted: list[tuple[str, object, object]] = [
        ("--name", state.name, name),
        ("--node-grace-seconds", state.grace_seconds, grace_seconds),
        ("--control-plane", state.control_plane, str(control_plane.resolve()) if control_plane else None),
    ]
    for node, entry in state.nodes.items():
        wanted += [(f"--capacity of {node}", entry.capacity, capacity), (f"--labels of {node}", entry.labels, labels)]
    for option, is_now, asked in wanted:
        if asked is not None and is_now != asked:
            raise ClusterError(f"{option} is {is_now!r} and cannot become {asked!r}: take the cluster down first")
