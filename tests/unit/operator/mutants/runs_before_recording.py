"""Bug: ranks are started from slot 0's proposal before it is recorded in status."""

import pytest

from trireme.protocol import Phase, Target
from trireme.resources.status import GangPhase
from trireme_operator.decide import targets
from trireme_operator.decide.situation import Situation


def seed(patch: pytest.MonkeyPatch) -> None:
    original = targets.target

    def target(s: Situation) -> Target | None:
        wanted, report = original(s), s.current(0)
        if wanted is not None and s.gang.phase == GangPhase.PREPARING and report and report.proposal:
            return wanted.model_copy(update={"phase": Phase.RUN, "resume_from": report.proposal.resume})
        return wanted

    patch.setattr(targets, "target", target)
