"""CEL rules (x-kubernetes-validations) of custom resources."""

from __future__ import annotations

from .definitions import Schema
from .errors import Cause
from .store import Obj


class Rules:
    """placeholder"""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def evaluate(self, new: Obj, old: Obj | None) -> list[Cause]:
        return []
