"""Bug: when the newest checkpoint was rejected, the attempt starts at step 0 instead of at an older one."""

import pytest

from trireme.protocol import ProposedResume, Report
from trireme_operator.decide import gang
from trireme_operator.decide.situation import Situation


def seed(patch: pytest.MonkeyPatch) -> None:
    original = gang._record

    def record(s: Situation, report: Report, proposal: ProposedResume):  # type: ignore[no-untyped-def]
        if proposal.rejected:
            proposal = proposal.model_copy(update={"resume": None})
        return original(s, report, proposal)

    patch.setattr(gang, "_record", record)
