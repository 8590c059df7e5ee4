"""Bug: a pod that got a node and never comes up there has no deadline."""

import pytest

from trireme_operator.decide import room


def seed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(room, "never_started", lambda s, slot: False)
