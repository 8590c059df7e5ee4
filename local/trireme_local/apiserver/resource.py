"""What a served resource is: its names, its verbs, and the strategy that knows its kind's own rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from . import definitions, names
from .decode import Decoder
from .definitions import Schema
from .errors import Cause
from .store import Obj

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
READ_VERBS = ("get", "list", "watch")
COMMON_FIELDS = frozenset({"metadata.name", "metadata.namespace"})


def now() -> str:
    """The current time as metav1.Time: UTC, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def now_micro() -> str:
    """The current time as metav1.MicroTime."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True)
class Column:
    """One column of a Table; `path` is a JSONPath into the object, or cells come from the strategy."""

    name: str
    type: str = "string"
    format: str = ""
    description: str = ""
    priority: int = 0
    path: str = ""


class Strategy:
    """How objects of one kind are decoded, defaulted, checked and shown. Subclasses override what is their own."""

    has_generation = False
    returns_deleted = False
    unconditional_update = True
    create_on_update = False
    strategic_merge = True
    name_rule: names.NameRule = staticmethod(names.subdomain)
    columns: Sequence[Column] = ()

    def __init__(self, definition: str = "") -> None:
        self.definition = definition

    @property
    def schema(self) -> Schema:
        """The root schema of the kind."""
        return definitions.named(self.definition)

    def decode(self, obj: Obj) -> tuple[Obj, list[str]]:
        """The object as this server understands it, and the paths of the fields that it does not know.

        Raises DecodeError for a value of the wrong type.
        """
        decoder = Decoder()
        decoded: Obj = decoder.decode(obj, self.schema)
        return decoded, decoder.unknown

    def default(self, obj: Obj) -> None:
        """Fill in defaults in place."""

    def prepare_create(self, obj: Obj) -> None:
        """Reset what a client may not set on create, in place."""

    def prepare_update(self, new: Obj, old: Obj) -> None:
        """Reset what a client may not change through the main resource, in place."""

    def prepare_status_update(self, new: Obj, old: Obj) -> None:
        """Keep everything but status (and, of metadata, what /status may write) as it was."""
        for key in set(new) | set(old):
            if key not in ("status", "metadata", "apiVersion", "kind"):
                _restore(new, old, key)

    def validate(self, obj: Obj) -> list[Cause]:
        """Field errors of a new object, without its metadata."""
        return []

    def validate_update(self, new: Obj, old: Obj) -> list[Cause]:
        """Field errors of a change through the main resource."""
        return self.validate(new)

    def validate_status_update(self, new: Obj, old: Obj) -> list[Cause]:
        """Field errors of a change through /status."""
        return []

    def grace_seconds(self, obj: Obj, asked: int | None) -> int | None:
        """Seconds between deletion and removal; None where the kind is removed at once."""
        return None

    def generation_changed(self, new: Obj, old: Obj) -> bool:
        """Whether an update raises metadata.generation."""
        return bool(new.get("spec") != old.get("spec"))

    def cells(self, obj: Obj) -> list[Any]:
        """The cells of this object's row, one per column."""
        raise NotImplementedError

    def warnings(self, obj: Obj) -> list[str]:
        """Texts for Warning headers on a write."""
        return []


def _restore(new: Obj, old: Obj, key: str) -> None:
    if key in old:
        new[key] = old[key]
    else:
        new.pop(key, None)


class WithStatus(Strategy):
    """A kind with a status subresource: the main resource keeps status, /status keeps the rest."""

    def prepare_create(self, obj: Obj) -> None:
        obj.pop("status", None)

    def prepare_update(self, new: Obj, old: Obj) -> None:
        _restore(new, old, "status")


@dataclass(frozen=True)
class Subresource:
    """A subresource as discovery shows it."""

    kind: str
    verbs: tuple[str, ...]
    group: str = ""
    version: str = ""


STATUS_VERBS = ("get", "patch", "update")


@dataclass
class Resource:
    """One served resource of one group and version."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    strategy: Strategy
    singular: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    subresources: dict[str, Subresource] = field(default_factory=dict)
    selectable_fields: frozenset[str] = frozenset()
    storage: str = ""
    list_kind: str = ""
    custom: bool = False
    scale_paths: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.singular = self.singular or self.kind.lower()
        self.storage = self.storage or f"{self.group}/{self.plural}"
        self.list_kind = self.list_kind or f"{self.kind}List"

    @property
    def api_version(self) -> str:
        """`group/version`, or `version` in the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def fields(self) -> frozenset[str]:
        """Paths that a field selector may use."""
        common = COMMON_FIELDS if self.namespaced else frozenset({"metadata.name"})
        return common | self.selectable_fields

    def with_status(self) -> Resource:
        """Add the usual status subresource; returns itself."""
        self.subresources["status"] = Subresource(self.kind, STATUS_VERBS)
        return self

    def to_served(self, obj: Obj) -> Obj:
        """A stored object as this group and version show it."""
        if obj.get("apiVersion") == self.api_version and obj.get("kind") == self.kind:
            return obj
        return {**obj, "apiVersion": self.api_version, "kind": self.kind}

    def to_stored(self, obj: Obj) -> Obj:
        """An object as it is kept, from the form of this group and version."""
        return obj
