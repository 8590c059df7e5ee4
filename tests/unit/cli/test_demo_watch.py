"""The demo shows all it promises, and kills a node in the middle of the run or fails."""

import io
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from trireme.protocol import AgentState, CheckpointFact, CheckpointReport, Progress, Report
from trireme.resources.status import JobStatus
from trireme_cli.demo import watch
from trireme_cli.demo.fault import FaultPlan
from trireme_cli.demo.live import LiveLine, describe
from trireme_cli.demo.watch import DemoFailed, Watcher
from trireme_cli.jobs import Job

TOTAL = 150


def progress(step: int) -> Progress:
    return Progress(
        step=step,
        total_steps=TOTAL,
        tokens=step * 2048,
        loss=12.345,
        tokens_per_second=123456.0,
        tflops_per_device=1.2345,
        mfu=0.45,
        mfu_basis="measured-cpu",
        step_seconds=12.0,
    )


def report(step: int, committed: int | None, saving: int | None) -> Report:
    fact = CheckpointFact(step=committed or 0, uri="s3://b/c", manifest_digest="0", bytes=1, seconds_ago=0)
    return Report(
        job_uid="u",
        slot=0,
        pod="p",
        node="n",
        attempt=1,
        state=AgentState.RUNNING,
        ranks_alive=2,
        progress=progress(step),
        checkpoint=CheckpointReport(last_committed=fact if committed else None, in_progress_step=saving),
    )


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_figure_is_visible_on_a_terminal_of_any_width(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    status = JobStatus.model_validate({"state": "Restarting", "restarts": {"total": 17}})
    with LiveLine(console) as line:
        line.show(describe(status, progress(145), 145, 299.0), status.state, 299.0)
        lines = re.sub(r"\x1b\[\S*?[A-Za-z]|\r", "", shown(console)).splitlines()
    assert max(map(len, lines)) <= width
    visible = " ".join(lines)
    figures = ["Restarting", "145/150", "loss 12.345", "123,456 tokens/s", "1234.5 GFLOP/s", "MFU 45%", "ETA 60 s"]
    for figure in [*figures, "restarts 17"]:
        assert figure in visible


def test_without_a_terminal_a_line_is_printed_on_every_change_of_state_and_now_and_then() -> None:
    console = Console(file=io.StringIO(), width=80)
    with LiveLine(console) as line:
        for now, state in [(0.0, "Running"), (1.0, "Running"), (2.0, "Restarting"), (8.0, "Restarting")]:
            line.show([f"{now:.0f} s", state], state, now)
    assert shown(console).splitlines() == ["0 s | Running", "2 s | Restarting", "8 s | Restarting"]


@given(
    seed=st.integers(0, 1000),
    interval=st.integers(5, 200),
    saving_for=st.integers(0, 300),
    stride=st.integers(1, 3),
)
def test_the_node_is_killed_between_30_and_70_percent_and_never_on_a_checkpoint(
    seed: int, interval: int, saving_for: int, stride: int
) -> None:
    plan = FaultPlan(random.Random(seed))
    saved = committed = saving = 0
    for step in range(1, TOTAL + 1):
        if saving and step - saving >= saving_for:
            committed, saving = saving, 0
        if not saving and step - saved >= interval:
            saved = saving = step
        if step % stride == 0 and plan.is_due(report(step, committed or None, saving or None)):
            break
    assert 45 <= step <= 105
    assert step > max(committed, saving)


def test_a_save_under_way_is_waited_for() -> None:
    plan = FaultPlan(random.Random(0))
    assert not plan.is_due(report(95, 50, 90))
    assert plan.is_due(report(96, 90, None))


def watcher(monkeypatch: pytest.MonkeyPatch, *, fault: bool) -> Watcher:
    job = Job(None, {"metadata": {"name": "j"}, "status": {"state": "Succeeded"}})  # type: ignore[arg-type]
    monkeypatch.setattr(watch, "find_job", lambda *_: job)
    console = Console(file=io.StringIO())
    return Watcher(None, "j", None, console, random.Random(0), fault=fault)  # type: ignore[arg-type]


def test_a_demo_that_killed_no_node_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DemoFailed, match="before a node was killed"):
        watcher(monkeypatch, fault=True).run(10)


def test_a_demo_that_was_to_kill_no_node_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watcher(monkeypatch, fault=False).run(10).name == "j"
