"""decide() under faults in model time."""

import pytest
from gang_machine import GangMachine
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test


def run(examples: int) -> None:
    chosen = settings(
        max_examples=examples,
        stateful_step_count=50,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    run_state_machine_as_test(GangMachine, settings=chosen)  # type: ignore[no-untyped-call]


def test_invariants_hold_under_any_faults() -> None:
    run(120)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_invariants_hold_under_any_faults_at_length() -> None:
    run(600)
