"""Bug: a pod that does not go is waited for, whoever could still end it."""

import pytest

from trireme_operator.decide import room


def seed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(room, "stuck", lambda s, pod: False)
