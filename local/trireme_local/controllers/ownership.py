"""Who owns whom, by uid: the pure part of the garbage collector."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from trireme_local.kube import JsonObject, Resource

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"

Action = Literal["delete", "drop-references", "none"]


@dataclass
class ObjectNode:
    """What the collector remembers of one object."""

    resource: Resource
    namespace: str
    name: str
    uid: str
    resource_version: str
    owners: list[JsonObject] = field(default_factory=list)
    deleting: bool = False
    finalizers: tuple[str, ...] = ()

    @classmethod
    def of(cls, resource: Resource, obj: JsonObject) -> ObjectNode:
        """From an object's metadata."""
        metadata = obj["metadata"]
        return cls(
            resource=resource,
            namespace=metadata.get("namespace", ""),
            name=metadata["name"],
            uid=metadata["uid"],
            resource_version=metadata["resourceVersion"],
            owners=list(metadata.get("ownerReferences") or []),
            deleting=bool(metadata.get("deletionTimestamp")),
            finalizers=tuple(metadata.get("finalizers") or ()),
        )

    @property
    def waits_for_dependents(self) -> bool:
        """Being deleted in the foreground."""
        return self.deleting and FOREGROUND in self.finalizers

    @property
    def orphans_dependents(self) -> bool:
        """Being deleted with its dependents left behind."""
        return self.deleting and ORPHAN in self.finalizers


class OwnershipGraph:
    """Objects by uid with the dependents of each uid."""

    def __init__(self) -> None:
        self.nodes: dict[str, ObjectNode] = {}
        self._dependents: dict[str, set[str]] = {}

    def put(self, node: ObjectNode) -> None:
        """Add the object or its new version."""
        self.remove(node.uid)
        self.nodes[node.uid] = node
        for owner in node.owners:
            self._dependents.setdefault(owner["uid"], set()).add(node.uid)

    def remove(self, uid: str) -> None:
        """Forget the object; its dependents stay."""
        node = self.nodes.pop(uid, None)
        for owner in node.owners if node else []:
            dependents = self._dependents.get(owner["uid"])
            if dependents is not None:
                dependents.discard(uid)
                if not dependents:
                    del self._dependents[owner["uid"]]

    def dependents(self, uid: str) -> list[ObjectNode]:
        """Objects that name `uid` as an owner."""
        return [self.nodes[item] for item in sorted(self._dependents.get(uid, ())) if item in self.nodes]

    def blocking(self, uid: str) -> list[ObjectNode]:
        """Dependents that hold up a foreground deletion of `uid`."""
        return [
            node
            for node in self.dependents(uid)
            if any(owner["uid"] == uid and owner.get("blockOwnerDeletion") for owner in node.owners)
        ]


@dataclass(frozen=True)
class OwnerState:
    """An owner reference, whether its object exists, and whether that waits for its dependents."""

    uid: str
    exists: bool
    waiting: bool = False


def decide(owners: Iterable[OwnerState]) -> tuple[Action, list[str]]:
    """What to do with an object whose owners are in these states, and the uids of references to drop.

    Source: k8s.io/kubernetes/pkg/controller/garbagecollector.attemptToDeleteItem.
    """
    states = list(owners)
    solid = [owner for owner in states if owner.exists and not owner.waiting]
    dangling = [owner.uid for owner in states if not owner.exists]
    waiting = [owner.uid for owner in states if owner.exists and owner.waiting]
    if not states:
        return "none", []
    if solid:
        return ("drop-references", dangling + waiting) if dangling or waiting else ("none", [])
    return "delete", waiting
