"""Checkpoints of many jobs: are they made, how old are they, what do they cost, do they come back."""

from trireme_monitoring.board import Board, Column, Panel, Query, lines, number, rows
from trireme_monitoring.dashboards.variables import JOBS, KIND, NAMESPACE
from trireme_monitoring.promql import JOB, by, lifetime_mean, mean, one, or_zero, quantile, rate, shown
from trireme_operator import metrics as operator
from trireme_trainer.metrics import definitions as trainer

NAME = "{{namespace}}/{{job_name}}"
OPEN_JOB = "/d/trireme-job?var-namespace=${__data.fields.Namespace}&var-job=${__data.fields.Job}"
HOUR = "1h"
OF_JOB = ("namespace", "job_name", "kind")


def checkpoints() -> Board:
    """The dashboard."""
    board = Board(
        "checkpoints",
        "Trireme / Checkpoints",
        "Age, cost, size, failures and restores of checkpoints.",
        [NAMESPACE, JOBS, KIND],
        since="now-6h",
    )
    board.row("Now", *_now(), across=4)
    board.row("Each job", _table(), across=1)
    board.row("What a fault would cost", *_risk())
    board.row("What checkpoints cost", *_cost())
    board.row("Failures and restores", *_failures())
    return board


def _age() -> str:
    return f"time() - {one(operator.CHECKPOINT_SUCCESS)}"


def _running() -> str:
    return one(operator.JOB_STATE, matchers=('state="Running"',))


def _now() -> list[Panel]:
    oldest = f"max({_age()} and on ({JOB}) {_running()})"
    failing = or_zero(f"count({one(operator.CHECKPOINT_FAILING, 'reason')})")
    return [
        number(
            "Oldest of running jobs", "Age of the oldest newest checkpoint.", "s", Query(or_zero(oldest)), decimals=0
        ),
        number("Failing", "Jobs whose saves do not reach the store at present.", "none", Query(failing), bad_from=1),
        number(
            "Commits",
            "Checkpoints committed over all attempts.",
            "none",
            Query(f"sum({one(operator.CHECKPOINT_COMMITS)})"),
        ),
        number("Size", "Of the newest checkpoints together.", "bytes", Query(f"sum({one(trainer.CHECKPOINT_BYTES)})")),
    ]


def _table() -> Panel:
    columns = [
        Column("Age", _age(), "s"),
        Column("Step saved", one(operator.CHECKPOINT_STEP)),
        Column("Step now", one(operator.JOB_STEP)),
        Column("Commits", one(operator.CHECKPOINT_COMMITS)),
        Column("Size", one(trainer.CHECKPOINT_BYTES), "bytes"),
        Column("Stall", lifetime_mean(trainer.STALL_SECONDS, *OF_JOB), "s"),
        Column("Upload", lifetime_mean(trainer.UPLOAD_SECONDS, *OF_JOB), "s"),
    ]
    labels = {"namespace": "Namespace", "job_name": "Job", "kind": "Kind"}
    return rows("Newest checkpoints", "A line for each job.", labels, *columns, link=OPEN_JOB, link_on="Job")


def _risk() -> list[Panel]:
    unsaved = f"{one(operator.JOB_STEP)} - {one(operator.CHECKPOINT_STEP)}"
    commits = by("sum", JOB, f"increase({shown(operator.CHECKPOINT_COMMITS)}[{HOUR}])")
    return [
        lines(
            "Age of the newest checkpoint",
            "Of running jobs. A curve that rises past its usual height is a checkpoint that did not come.",
            "s",
            Query(f"{_age()} and on ({JOB}) {_running()}", NAME),
        ),
        lines(
            "Steps not saved", "Steps that a fault now would repeat.", "none", Query(f"clamp_min({unsaved}, 0)", NAME)
        ),
        lines("Commits per hour", "Of each job.", "none", Query(commits, NAME)),
    ]


def _cost() -> list[Panel]:
    stall, seconds = (
        by("sum", JOB, expression)
        for expression in (
            rate(operator.JOB_SECONDS, 'category="checkpointStall"', window=HOUR),
            rate(operator.JOB_SECONDS, 'category=~"productive|recompute|checkpointStall"', window=HOUR),
        )
    )
    return [
        lines(
            "Stall of a save",
            "How long training stood still for a save, mean of an hour.",
            "s",
            Query(mean(trainer.STALL_SECONDS, *OF_JOB, window=HOUR), NAME),
        ),
        lines(
            "Share of training spent in stalls",
            "Of the time in which ranks trained or saved, over an hour.",
            "percentunit",
            Query(f"{stall} / {seconds}", NAME),
        ),
        lines(
            "Upload",
            "From a save to its commit, over an hour.",
            "s",
            Query(mean(trainer.UPLOAD_SECONDS, *OF_JOB, window=HOUR), f"{NAME} mean"),
            Query(quantile(0.95, trainer.UPLOAD_SECONDS, *OF_JOB, window=HOUR), f"{NAME} 95%"),
        ),
        lines(
            "Size", "Of the checkpoint that was committed last.", "bytes", Query(one(trainer.CHECKPOINT_BYTES), NAME)
        ),
        lines(
            "Seconds per step in saves",
            "What saves cost, spread over all steps.",
            "s",
            Query(
                by("sum", JOB, rate(trainer.PART_SECONDS, 'part="checkpoint"', suffix="_sum", window=HOUR))
                + " / "
                + by("sum", JOB, rate(trainer.STEP_SECONDS, suffix="_count", window=HOUR)),
                NAME,
            ),
        ),
        lines(
            "Upload speed",
            "Size of the newest checkpoint by the mean time from save to commit.",
            "Bps",
            Query(f"{one(trainer.CHECKPOINT_BYTES)} / {lifetime_mean(trainer.UPLOAD_SECONDS, *OF_JOB)}", NAME),
        ),
    ]


def _failures() -> list[Panel]:
    failing = by("max", f"{JOB}, reason", shown(operator.CHECKPOINT_FAILING))
    failures = by("sum", f"{JOB}, reason", shown(trainer.CHECKPOINT_FAILURES))
    return [
        lines(
            "Jobs whose saves fail",
            "1 while saves do not reach the store; training goes on meanwhile.",
            "none",
            Query(or_zero(failing, "reason"), f"{NAME} {{{{reason}}}}"),
        ),
        lines(
            "Failed saves",
            "Saves, and tries to bring one into the store, that failed since the pods began.",
            "none",
            Query(or_zero(failures, "reason"), f"{NAME} {{{{reason}}}}"),
        ),
        lines(
            "Restore",
            "How long ranks took to verify and load the checkpoint that they resumed from, mean.",
            "s",
            Query(lifetime_mean(trainer.RESTORE_SECONDS, *OF_JOB), NAME),
        ),
    ]
