"""Bug: a silent pod is removed by force at once, and its absence then passes for the kubelet's word."""

import pytest

from trireme_operator.decide import acting
from trireme_operator.decide.model import Observed
from trireme_operator.decide.situation import Situation


def seed(patch: pytest.MonkeyPatch) -> None:
    original = acting._clear_fenced

    def eager(s: Situation):  # type: ignore[no-untyped-def]
        silent = [acting._delete(s, pod, "") for slot, pod in s.pods.items() if not s.acknowledged(slot)]
        return (*original(s), *(acting.replace(delete, force=True) for delete in silent))

    patch.setattr(acting, "_clear_fenced", eager)
    patch.setattr(Observed, "node_down", lambda self, name: False)
