"""metadata.managedFields: who owns which field, on every write."""

from __future__ import annotations

from .resource import Resource
from .store import Obj


def track(resource: Resource, new: Obj, old: Obj | None, manager: str, subresource: str) -> None:
    """Record the fields that a create or update changed as owned by `manager`, in place."""


def same(new: Obj, old: Obj) -> bool:
    """Whether a write would change nothing that counts."""
    return new == old
