"""Server-side apply."""

from __future__ import annotations

from typing import Any

from . import errors
from .operations import Operations, WriteOptions
from .resource import Resource
from .store import Obj


def apply(
    operations: Operations,
    resource: Resource,
    namespace: str,
    name: str,
    body: Any,
    options: WriteOptions,
    subresource: str,
) -> tuple[Obj, bool]:
    raise errors.not_implemented("server-side apply")
