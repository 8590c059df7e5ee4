"""Bug: the application budget is never spent, so a job whose ranks always raise restarts for ever."""

import pytest

from trireme_operator.decide import restarts
from trireme_operator.decide.faults import Budget


def seed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(restarts, "limit", lambda budgets, budget: 10**9 if budget == Budget.APPLICATION else 1)
