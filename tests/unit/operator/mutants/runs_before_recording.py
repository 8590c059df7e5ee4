"""Bug: ranks are started from slot 0's proposal first, and the resume point is recorded afterwards."""

import pytest

from trireme.protocol import Phase
from trireme.resources.status import GangPhase
from trireme_operator.decide import core, targets
from trireme_operator.decide.model import Decision, Observed, PutTarget


def seed(patch: pytest.MonkeyPatch) -> None:
    original = core.decide

    def decide(observed: Observed, kind: core.Kind) -> Decision:
        s = core.situation(observed, kind)
        report = s.current(0) if s is not None else None
        if s is None or s.gang.phase != GangPhase.PREPARING or report is None or report.proposal is None:
            return original(observed, kind)
        wanted = targets.target(s)
        assert wanted is not None
        wanted = wanted.model_copy(update={"phase": Phase.RUN, "resume_from": report.proposal.resume})
        told = [c.sent for pod in s.pods.values() if (c := s.observed.contact(pod)) is not None]
        if wanted in told:
            return original(observed, kind)
        puts = [PutTarget(n, pod.uid, pod.address, wanted) for n, pod in s.pods.items() if pod.address]
        return Decision(actions=tuple(puts), requeue_seconds=0.1)

    patch.setattr(core, "decide", decide)
