"""The demo's report: what happened, in numbers, from the job's own status."""

from typing import Any

from rich.console import Console
from rich.table import Table

from trireme.resources.status import JobStatus
from trireme_cli.demo.timeline import Timeline
from trireme_cli.jobs import Job
from trireme_cli.overview import goodput_ratio


def build_report(job: Job, timeline: Timeline) -> dict[str, Any]:
    """The content of report.json."""
    status = job.status
    progress = status.progress
    seconds = category_seconds(status)
    return {
        "phase": str(status.state),
        "steps": progress.step if progress else 0,
        "restarts": [
            {"cause": r.cause, "node": r.node, "attempt": r.attempt, "step": r.step} for r in status.restarts.history
        ],
        "detectSeconds": timeline.detect_seconds(),
        "recoverSeconds": timeline.recover_seconds(),
        "lostSteps": timeline.lost_steps(),
        "firstLoss": progress.first_loss if progress else None,
        "lastLoss": progress.loss if progress else None,
        "validationLoss": progress.validation_loss if progress else None,
        "goodputRatio": goodput_ratio(seconds),
        "secondsByCategory": seconds,
        "checkpoints": status.checkpoint.committed_count,
    }


def category_seconds(status: JobStatus) -> dict[str, float]:
    """Seconds by category, rounded to milliseconds."""
    return {name: round(value, 3) for name, value in status.time.seconds.model_dump(by_alias=True).items()}


def print_seconds(console: Console, status: JobStatus) -> None:
    """The table of where every second went."""
    seconds = category_seconds(status)
    total = sum(seconds.values()) or 1.0
    table = Table(title="Where every second went")
    table.add_column("category")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for name, value in sorted(seconds.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{value:.1f}", f"{value / total:.1%}")
    table.add_section()
    table.add_row("all", f"{total:.1f}", "100.0%")
    console.print(table)
