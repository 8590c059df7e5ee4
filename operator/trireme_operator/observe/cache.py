"""Objects as last seen. An older resourceVersion never replaces a newer one."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

JsonObject = dict[str, Any]
Key = tuple[str, str]  # namespace ('' for cluster-scoped), name


def key_of(raw: JsonObject) -> Key:
    """Namespace and name."""
    metadata = raw["metadata"]
    return metadata.get("namespace") or "", metadata["name"]


def _version(raw: JsonObject) -> int | None:
    version = raw["metadata"].get("resourceVersion", "")
    return int(version) if version.isdigit() else None


class Cache:
    """All objects of one resource, with an index by the first of some labels that an object has.

    `on_change` is told each old and new object.
    """

    def __init__(
        self,
        *index_labels: str,
        on_change: Callable[[JsonObject | None, JsonObject | None], None] | None = None,
    ) -> None:
        self._objects: dict[Key, JsonObject] = {}
        self._labels = index_labels
        self._on_change = on_change
        self._index: dict[str, set[Key]] = {}
        self._tombstones: dict[str, int | None] = {}  # UID -> version at deletion
        self.synced = False
        self.refused = False
        """Whether the API server forbids to list: what was known stays, and there may be more."""

    @property
    def settled(self) -> bool:
        """Whether everything was listed once that may be."""
        return self.synced or self.refused

    def __iter__(self) -> Iterator[JsonObject]:
        return iter(list(self._objects.values()))

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, namespace: str, name: str) -> JsonObject | None:
        """One object."""
        return self._objects.get((namespace, name))

    def labelled(self, value: str) -> list[JsonObject]:
        """Objects whose index label has this value, by name."""
        return [self._objects[key] for key in sorted(self._index.get(value, ()))]

    def handle(self, event: str | None, raw: JsonObject) -> None:
        """Take one watch event (None is the initial list)."""
        key, uid = key_of(raw), raw["metadata"].get("uid", "")
        old = self._objects.get(key)
        if event == "DELETED":
            if old is None or old["metadata"].get("uid") == uid:
                self._drop(key)
            self._tombstones[uid] = _version(raw)
            if len(self._tombstones) > 10_000:
                self._tombstones.pop(next(iter(self._tombstones)))
            return
        if uid in self._tombstones:
            return  # a late event of an object that is gone
        if old is not None and old["metadata"].get("uid") == uid:
            ours, theirs = _version(old), _version(raw)
            if ours is not None and theirs is not None and theirs <= ours:
                return
        # Half of an object's bytes, and nobody here reads them.
        raw = {**raw, "metadata": {k: v for k, v in raw["metadata"].items() if k != "managedFields"}}
        self._drop(key)
        self._objects[key] = raw
        if self._on_change is not None:
            self._on_change(None, raw)
        value = self._value(raw)
        if value is not None:
            self._index.setdefault(value, set()).add(key)

    def replace(self, objects: Iterable[JsonObject], began_with: set[str]) -> None:
        """Take a full list: what was there when the list began and is not in it any more is gone."""
        listed = {raw["metadata"].get("uid", ""): raw for raw in objects}
        for raw in listed.values():
            self.handle(None, raw)
        for key, raw in list(self._objects.items()):
            uid = raw["metadata"].get("uid", "")
            if uid in began_with and uid not in listed:
                self._drop(key)
        self.synced, self.refused = True, False

    def uids(self, namespace: str | None = None) -> set[str]:
        """UIDs of all objects, or of those in a namespace."""
        found = (raw for key, raw in self._objects.items() if namespace in (None, key[0]))
        return {raw["metadata"].get("uid", "") for raw in found}

    def _value(self, raw: JsonObject) -> str | None:
        labels = raw["metadata"].get("labels") or {}
        return next((labels[name] for name in self._labels if name in labels), None)

    def _drop(self, key: Key) -> None:
        raw = self._objects.pop(key, None)
        if raw is not None and self._on_change is not None:
            self._on_change(raw, None)
        value = self._value(raw) if raw is not None else None
        if value is not None:
            self._index[value].discard(key)
            if not self._index[value]:
                del self._index[value]
