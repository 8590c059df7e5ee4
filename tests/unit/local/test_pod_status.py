"""A pod's phase and conditions follow from its containers' states."""

from typing import Any

import pytest

from trireme_local.node.status import (
    ContainerRecord,
    conditions_of,
    phase_of,
    should_restart,
    terminated,
    waiting,
    with_times,
)

RUNNING = {"running": {"startedAt": "t"}}


def _record(state: dict[str, Any], **more: Any) -> ContainerRecord:
    return ContainerRecord("c", "image", state, **more)


def _ended(code: int) -> dict[str, Any]:
    return terminated(code, "Completed", None)


@pytest.mark.parametrize(
    ("policy", "states", "phase"),
    [
        ("Always", [waiting("ContainerCreating")], "Pending"),
        ("Always", [RUNNING, waiting("ContainerCreating")], "Running"),
        ("Never", [_ended(0), _ended(0)], "Succeeded"),
        ("Never", [_ended(0), _ended(1)], "Failed"),
        ("Never", [_ended(1), RUNNING], "Running"),
        ("OnFailure", [_ended(0)], "Succeeded"),
        ("OnFailure", [_ended(1)], "Running"),
        ("Always", [_ended(0)], "Running"),
    ],
)
def test_phase_of_the_main_containers(policy: str, states: list[dict[str, Any]], phase: str) -> None:
    assert phase_of({"restartPolicy": policy}, [], [_record(state) for state in states]) == phase


def test_waiting_to_restart_is_running_not_pending() -> None:
    backing_off = _record(waiting("CrashLoopBackOff"), last_state=_ended(1))
    assert phase_of({"restartPolicy": "Always"}, [], [backing_off]) == "Running"


def test_a_failed_init_container_decides_by_the_policy() -> None:
    init, main = [_record(_ended(1))], [_record(waiting("PodInitializing"))]
    assert phase_of({"restartPolicy": "Never"}, init, main) == "Failed"
    assert phase_of({"restartPolicy": "OnFailure"}, init, main) == "Pending"


def test_ready_needs_every_container_and_every_gate() -> None:
    def ready(records: list[ContainerRecord], gates: list[bool]) -> str:
        found = conditions_of("Running", [], records, True, gates)
        return str(next(item["status"] for item in found if item["type"] == "Ready"))

    good, bad = _record(RUNNING, ready=True), _record(RUNNING)
    assert ready([good], []) == "True"
    assert ready([good, bad], []) == "False"
    assert ready([good], [False]) == "False"


def test_a_transition_time_changes_only_with_the_status() -> None:
    before = [{"type": "Ready", "status": "True", "lastTransitionTime": "then"}]
    assert with_times([{"type": "Ready", "status": "True"}], before)[0]["lastTransitionTime"] == "then"
    assert with_times([{"type": "Ready", "status": "False"}], before)[0]["lastTransitionTime"] != "then"


def test_restart_policies() -> None:
    assert should_restart("Always", 0)
    assert should_restart("OnFailure", 1)
    assert not should_restart("OnFailure", 0)
    assert not should_restart("Never", 1)


def test_a_sidecar_has_to_be_started_and_then_ready() -> None:
    main = ContainerRecord("main", "i", {"running": {}}, ready=True, started=True)
    sidecar = ContainerRecord("beside", "i", {"running": {}}, started=True)

    def condition(kind: str, initialized: bool = True) -> tuple[str, str]:
        found = conditions_of("Running", [sidecar], [main], initialized, [], {"beside"})
        item = next(item for item in found if item["type"] == kind)
        return str(item["status"]), str(item.get("message", ""))

    assert condition("Ready") == ("False", "containers with unready status: [beside]")
    sidecar.ready = True
    assert condition("Ready")[0] == "True"
    sidecar.started = False
    assert condition("Initialized", False) == ("False", "containers with incomplete status: [beside]")
