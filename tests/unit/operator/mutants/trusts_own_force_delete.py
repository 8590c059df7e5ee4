"""Bug: a silent pod is removed by force at once, and its absence then passes for the kubelet's word."""

import pytest

from trireme_operator.decide import acting
from trireme_operator.decide.situation import Situation


def seed(patch: pytest.MonkeyPatch) -> None:
    clear, fenced = acting._clear_fenced, Situation.fenced

    def eager(s: Situation):  # type: ignore[no-untyped-def]
        silent = [acting._delete(s, pod, "") for slot, pod in s.pods.items() if not s.fenced(slot)]
        return (*clear(s), *(acting.replace(delete, force=True) for delete in silent))

    def trusting(self: Situation, slot: int) -> bool:
        record, pod = self.records.get(slot), self.pods.get(slot)
        gone = record is not None and (pod is None or pod.uid != record.pod_uid)
        return gone or fenced(self, slot)

    patch.setattr(acting, "_clear_fenced", eager)
    patch.setattr(Situation, "fenced", trusting)
