"""The demo's figures come from what was seen, also when steps are seen twice or not at all."""

from pathlib import Path

from trireme_cli.demo.plot import plot_losses
from trireme_cli.demo.timeline import Fault, Sample, Timeline


def lived_through_a_fault() -> Timeline:
    timeline = Timeline()
    for second, step in enumerate([1, 2, 3, 4, 5]):
        timeline.add(Sample(float(second), "Running", 1, step, 5.0 - step / 10, 1))
    timeline.fault = Fault(5.0, "node-2", 5, 1)
    timeline.add(Sample(6.0, "Running", 1, 6, 4.4, 1))
    timeline.add(Sample(9.0, "Restarting", 2, 6, None, 0))
    timeline.record_resume(3)
    timeline.add(Sample(20.0, "Running", 2, 3, None, 2))
    timeline.add(Sample(22.0, "Running", 2, 4, 4.6, 2))
    return timeline


def test_detection_is_the_time_until_the_attempt_was_raised() -> None:
    assert lived_through_a_fault().detect_seconds() == 4.0


def test_recovery_ends_with_the_first_step_completed_after_the_resume_point() -> None:
    assert lived_through_a_fault().recover_seconds() == 17.0


def test_lost_steps_count_from_the_highest_completed_step_to_the_resume_point() -> None:
    assert lived_through_a_fault().lost_steps() == 3


def test_all_steps_are_lost_where_no_checkpoint_was_there_to_resume_from() -> None:
    timeline = Timeline()
    timeline.add(Sample(0.0, "Running", 1, 70, 5.0, 1))
    timeline.fault = Fault(1.0, "node-2", 70, 1)
    timeline.add(Sample(5.0, "Running", 2, 1, 6.0, 2))
    assert timeline.lost_steps() == 70
    assert timeline.recover_seconds() == 4.0


def test_samples_without_a_report_are_of_no_attempt() -> None:
    timeline = lived_through_a_fault()
    timeline.add(Sample(90.0, "Succeeded", 2, 150, None, 0))
    assert timeline.lost_steps() == 3


def test_a_run_without_a_fault_has_no_recovery_figures() -> None:
    timeline = Timeline()
    timeline.add(Sample(0.0, "Running", 1, 1, 5.0, 1))
    assert timeline.detect_seconds() is None
    assert timeline.recover_seconds() is None
    assert timeline.lost_steps() is None


def test_the_curve_keeps_the_steps_of_both_attempts(tmp_path: Path) -> None:
    timeline = lived_through_a_fault()
    assert [(s, a) for s, _, a in timeline.losses()] == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (4, 2)]
    plot_losses(timeline, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
