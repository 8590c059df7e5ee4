"""A checkpoint on its way from the ranks' files to its manifest, as one node's agent knows it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from trireme.checkpoints import ShardFile
from trireme_trainer.agent.messages import SavedEvent


@dataclass
class Save:
    """One checkpoint on its way."""

    step: int
    started_at: float
    ranks: dict[int, SavedEvent] = field(default_factory=dict)
    failed_ranks: set[int] = field(default_factory=set)
    directories: set[str] = field(default_factory=set)
    """Where this node's ranks wrote; removed when the files are in, or the save is done and no rank writes any more."""
    slots: dict[int, list[ShardFile]] = field(default_factory=dict)
    stuck: set[int] = field(default_factory=set)
    """Slots whose last try failed and brought nothing in, until their next one begins (this node) or succeeds."""
    own_files: list[ShardFile] | None = None
    hashed: dict[str, ShardFile] = field(default_factory=dict)
    uploaded: set[str] = field(default_factory=set)
    counted: int = 0
    """How many were uploaded at the last failure."""
    task: asyncio.Task[None] | None = None
    done: bool = False

    def tried(self, slot: int, *, failed: bool) -> None:
        """Note how a slot's last try stands."""
        (self.stuck.add if failed else self.stuck.discard)(slot)
