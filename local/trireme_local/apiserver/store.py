"""Objects in memory, written through to SQLite; one monotonic resourceVersion for all of them."""

from __future__ import annotations

import json
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Obj = dict[str, Any]
HISTORY_EVENTS_PER_RESOURCE = 2000


def encode(obj: Any) -> bytes:
    """Compact JSON bytes of an object."""
    return json.dumps(obj, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass(frozen=True)
class Entry:
    """One version of one object. `obj` is shared and must never be changed in place."""

    namespace: str
    name: str
    version: int
    obj: Obj
    raw: bytes


@dataclass(frozen=True)
class Change:
    """One write, as watchers see it; `previous` lets a selector tell entering from leaving."""

    kind: str  # ADDED, MODIFIED or DELETED
    version: int
    entry: Entry
    previous: Entry | None


class ExpiredVersionError(Exception):
    """The history no longer reaches back to the asked resourceVersion."""

    def __init__(self, asked: int, oldest: int) -> None:
        super().__init__(f"too old resource version: {asked} ({oldest})")


class Store:
    """The state of the cluster; a resource key is `group/plural`. Not thread-safe: one event loop owns it."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        # WAL with NORMAL survives the death of this process at any point; only a power cut may lose the tail.
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS objects (resource TEXT, namespace TEXT, name TEXT, version INTEGER,"
            " data BLOB, PRIMARY KEY (resource, namespace, name)) WITHOUT ROWID"
        )
        self._db.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER)")
        self._objects: dict[str, dict[tuple[str, str], Entry]] = {}
        self._history: dict[str, deque[Change]] = {}
        self._listeners: dict[str, set[Callable[[Change], None]]] = {}
        row = self._db.execute("SELECT value FROM meta WHERE key='version'").fetchone()
        self._version: int = row[0] if row else 1
        # Versions up to here were handed out by an earlier process, whose history is gone.
        self._oldest = self._version
        self._trimmed: dict[str, int] = {}
        for resource, namespace, name, version, data in self._db.execute(
            "SELECT resource, namespace, name, version, data FROM objects"
        ):
            entry = Entry(namespace, name, version, json.loads(data), data)
            self._objects.setdefault(resource, {})[(namespace, name)] = entry

    @property
    def version(self) -> int:
        """The resourceVersion of the newest write."""
        return self._version

    def close(self) -> None:
        """Flush and close the database."""
        self._db.close()

    def get(self, resource: str, namespace: str, name: str) -> Entry | None:
        """The current version of an object, or None."""
        return self._objects.get(resource, {}).get((namespace, name))

    def list(self, resource: str, namespace: str = "") -> list[Entry]:
        """All objects of a resource (of one namespace if given), in key order."""
        found = self._objects.get(resource, {})
        return [found[key] for key in sorted(found) if not namespace or key[0] == namespace]

    def count(self, resource: str, namespace: str = "") -> int:
        """How many objects a resource has (in one namespace if given)."""
        found = self._objects.get(resource, {})
        return len(found) if not namespace else sum(1 for key in found if key[0] == namespace)

    def resources(self) -> Iterator[str]:
        """Keys of the resources that hold at least one object."""
        return iter([key for key, found in self._objects.items() if found])

    def put(self, resource: str, namespace: str, name: str, obj: Obj) -> Entry:
        """Write an object; sets metadata.resourceVersion in `obj`, which then belongs to the store."""
        previous = self.get(resource, namespace, name)
        version = self._version + 1
        obj["metadata"]["resourceVersion"] = str(version)
        entry = Entry(namespace, name, version, obj, encode(obj))
        self._write(
            version,
            "INSERT OR REPLACE INTO objects VALUES (?,?,?,?,?)",
            (resource, namespace, name, version, entry.raw),
        )
        self._objects.setdefault(resource, {})[(namespace, name)] = entry
        self._publish(resource, Change("MODIFIED" if previous else "ADDED", version, entry, previous))
        return entry

    def delete(self, resource: str, namespace: str, name: str) -> Entry:
        """Remove an object; returns its last state with the resourceVersion of the removal.

        Raises KeyError when it does not exist.
        """
        previous = self._objects[resource][(namespace, name)]
        version = self._version + 1
        obj = {**previous.obj, "metadata": {**previous.obj["metadata"], "resourceVersion": str(version)}}
        entry = Entry(namespace, name, version, obj, encode(obj))
        self._write(
            version,
            "DELETE FROM objects WHERE resource=? AND namespace=? AND name=?",
            (resource, namespace, name),
        )
        del self._objects[resource][(namespace, name)]
        self._publish(resource, Change("DELETED", version, entry, previous))
        return entry

    def reinterpret(self, resource: str, namespace: str, name: str, obj: Obj) -> None:
        """Show an object differently from now on, without a write: what is stored and its version stay."""
        current = self._objects[resource][(namespace, name)]
        self._objects[resource][(namespace, name)] = Entry(namespace, name, current.version, obj, encode(obj))

    def _write(self, version: int, statement: str, values: tuple[Any, ...]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.execute(statement, values)
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('version', ?)", (version,))
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._version = version

    def _publish(self, resource: str, change: Change) -> None:
        history = self._history.setdefault(resource, deque())
        history.append(change)
        if len(history) > HISTORY_EVENTS_PER_RESOURCE:
            self._trimmed[resource] = history.popleft().version
        for listener in tuple(self._listeners.get(resource, ())):
            listener(change)

    def changes_since(self, resource: str, version: int) -> Sequence[Change]:
        """Writes to a resource after `version`. Raises ExpiredVersionError when they are no longer known."""
        oldest = max(self._oldest, self._trimmed.get(resource, 0))
        if version < oldest:
            raise ExpiredVersionError(version, oldest)
        return [change for change in self._history.get(resource, ()) if change.version > version]

    def subscribe(self, resource: str, listener: Callable[[Change], None]) -> Callable[[], None]:
        """Call `listener` on each later write; returns the function that ends the subscription."""
        listeners = self._listeners.setdefault(resource, set())
        listeners.add(listener)
        return lambda: listeners.discard(listener)
