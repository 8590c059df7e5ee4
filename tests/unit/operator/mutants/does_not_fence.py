"""Bug: the next attempt forms without waiting until the old one is known to be stopped."""

import pytest

from trireme_operator.decide.situation import Situation


def seed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Situation, "fenced", lambda self, slot: True)
    patch.setattr(Situation, "acknowledged", lambda self, slot: self.current(slot) is not None)
