"""What a controller has asked for and not yet seen: until then its view of the cluster is too old to act on."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

# After this long what was expected has been missed (a watch that broke off at the wrong moment).
TIMEOUT_SECONDS = 300.0


@dataclass
class _Expected:
    creations: int = 0
    deletions: set[str] = field(default_factory=set)
    since: float = 0.0


class Expectations:
    """Creations and deletions per owner uid that the informer has yet to show."""

    def __init__(self) -> None:
        self._expected: dict[str, _Expected] = {}

    def expect(self, owner_uid: str, *, creations: int = 0, deletions: Iterable[str] = ()) -> None:
        """Say what is about to be asked of the API server; `deletions` are uids."""
        self._expected[owner_uid] = _Expected(creations, set(deletions), time.monotonic())

    def created(self, owner_uid: str) -> None:
        """One creation has been seen, or has failed."""
        if (expected := self._expected.get(owner_uid)) is not None:
            expected.creations -= 1

    def deleted(self, owner_uid: str, uid: str) -> None:
        """The deletion of an object has been seen, or has failed."""
        if (expected := self._expected.get(owner_uid)) is not None:
            expected.deletions.discard(uid)

    def satisfied(self, owner_uid: str) -> bool:
        """Whether everything asked for has been seen, or waited for too long."""
        expected = self._expected.get(owner_uid)
        if expected is None or (expected.creations <= 0 and not expected.deletions):
            return True
        return time.monotonic() - expected.since > TIMEOUT_SECONDS

    def forget(self, owner_uid: str) -> None:
        """The owner is gone."""
        self._expected.pop(owner_uid, None)
