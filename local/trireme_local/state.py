"""What a cluster remembers between two commands: cluster.json in its directory."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    isolate: bool | None = None
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
