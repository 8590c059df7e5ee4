"""The state machine finds seeded bugs: each mutant of decide() (or of its precondition) breaks an invariant."""

import importlib.util
from pathlib import Path

import pytest
from gang_machine import GangMachine
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

MUTANTS = sorted(path for path in (Path(__file__).parent / "mutants").glob("*.py"))
SETTINGS = settings(
    max_examples=2000,  # most are caught within a few dozen
    stateful_step_count=50,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("path", MUTANTS, ids=lambda path: path.stem)
def test_seeded_bug_is_caught(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location(f"mutant_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    mutant.seed(monkeypatch)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(GangMachine, settings=SETTINGS)  # type: ignore[no-untyped-call]
