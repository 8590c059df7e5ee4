"""decide() under faults in model time."""

from gang_machine import GangMachine
from hypothesis import HealthCheck, settings

TestGang = GangMachine.TestCase
TestGang.settings = settings(
    max_examples=500, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
