"""What may be deleted: all but the newest committed checkpoints, and what no attempt will ever adopt."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta

from trireme.checkpoints import JobKeys
from trireme.checkpoints.keys import MANIFEST_NAME
from trireme_storage.store import ObjectStore
from trireme_trainer.checkpoint.inventory import Inventory, StoredStep

ORPHAN_SECONDS = 3600.0


def select_deletions(
    inventory: Inventory,
    *,
    attempt: int,
    keep: int,
    protected: Collection[tuple[int, int]],
    now: datetime,
    orphan_seconds: float = ORPHAN_SECONDS,
) -> list[StoredStep]:
    """Steps to delete after a commit of `attempt`.

    `protected` names (attempt, step) that are never deleted: the last verified one and the one resumed from.
    Nor is what was committed by an attempt of which it is not known where it started.
    Orphans (uncommitted, or outside the lineage) go when their newest object is older than `orphan_seconds`.
    Nothing goes once a newer attempt has begun: what that one needs, its writer knows, and not the one it replaced.
    """
    if inventory.newest_attempt > attempt:
        return []
    lineage = list(inventory.lineage())
    committed = [(s.attempt, s.step) for s in lineage if s.committed]
    outdated = set(committed[keep:])
    orphans = set(inventory.steps) - set(committed)
    deletions = []
    for key, step in inventory.steps.items():
        if key in protected or (key[0] in inventory.unplaced and step.committed):
            continue
        old = step.modified is not None and now - step.modified > timedelta(seconds=orphan_seconds)
        # The running attempt's uncommitted steps are uploads in flight.
        if key in outdated or (key in orphans and old and key[0] != attempt):
            deletions.append(step)
    return deletions


def retain(
    store: ObjectStore,
    keys: JobKeys,
    *,
    attempt: int,
    keep: int,
    protected: Collection[tuple[int, int]],
    cancelled: Callable[[], bool],
) -> None:
    """Delete what retention lets go, until cancelled. Raises StoreError."""
    inventory = Inventory.read(store, keys)
    deletions = select_deletions(inventory, attempt=attempt, keep=keep, protected=protected, now=datetime.now(UTC))
    for step in deletions:
        if cancelled():
            return
        prefix = keys.step(step.attempt, step.step)
        # The manifest goes first: a step that is half deleted must not look like a checkpoint.
        store.delete([prefix + MANIFEST_NAME])
        store.delete([prefix + name for name in step.sizes if name != MANIFEST_NAME])
