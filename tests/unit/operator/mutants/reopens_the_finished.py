"""Bug: a finished job whose pods are lost is formed again."""

import pytest

from trireme.resources.status import GangPhase
from trireme_operator.decide import core, gang
from trireme_operator.decide.model import Decision, Observed


def seed(patch: pytest.MonkeyPatch) -> None:
    original = core.decide

    def decide(observed: Observed, kind: core.Kind) -> Decision:
        s = core.situation(observed, kind)
        if s is not None and s.gang.phase == GangPhase.FINISHED and len(s.pods) < s.resolved.slots:
            status = gang.enter(s, GangPhase.FENCING, attempt=s.gang.attempt + 1)
            return Decision(status=status)
        return original(observed, kind)

    patch.setattr(core, "decide", decide)
