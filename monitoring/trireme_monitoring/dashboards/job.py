"""One job: does it learn, how fast, what holds it up, what a fault would cost."""

from trireme_monitoring.board import Board, Marks, Panel, Query, bars, lines, number, word
from trireme_monitoring.dashboards.devices import device_panels
from trireme_monitoring.dashboards.variables import of_one_job
from trireme_monitoring.promql import JOB, by, lifetime_mean, mean, one, or_zero, quantile, rate, shown
from trireme_operator import metrics as operator
from trireme_trainer.metrics import definitions as trainer

HOUR = "1h"
"""For what is rare."""


def job() -> Board:
    """The dashboard."""
    board = Board(
        "job",
        "Trireme / Job",
        "One job: loss, MFU, tokens per second, step parts, checkpoints, restarts and their causes, ranks, devices.",
        of_one_job(),
        marks=restart_marks(),
    )
    board.row("Now", *_now(), across=8)
    board.row("Learning", *_learning())
    board.row("Speed", *_speed())
    board.row("Ranks", *_ranks(), across=4)
    board.row("Checkpoints", *_checkpoints(), across=4)
    board.row("Restarts and time", *_time())
    board.row("Devices (NVML)", *device_panels())
    return board


def restart_marks() -> list[Marks]:
    """A mark where the number of restarts of a cause grew, and one where a checkpoint was committed."""
    restarts, before = (
        by("max", f"{JOB}, cause", expression)
        for expression in (shown(operator.JOB_RESTARTS), f"{shown(operator.JOB_RESTARTS)} offset 1m")
    )
    commits = by("max", JOB, f"changes({shown(operator.CHECKPOINT_SUCCESS)}[1m])")
    return [
        Marks("Restarts", "red", Query(f"({restarts} - ({before} or 0 * {restarts})) > 0", "Restart: {{cause}}")),
        Marks("Checkpoints", "blue", Query(f"{commits} > 0", "Checkpoint"), enabled=False),
    ]


def _now() -> list[Panel]:
    step, total = one(operator.JOB_STEP), one(operator.JOB_TOTAL_STEPS)
    restarts = or_zero(f"sum({one(operator.JOB_RESTARTS, 'cause')})")
    state = one(operator.JOB_STATE, "state")
    left = f"({total} - {step}) * {mean(trainer.STEP_SECONDS, 'namespace', 'job_name', 'kind')}"
    return [
        word("State", "The STATE column of kubectl get.", Query(state, "{{state}}")),
        number("Progress", "Completed steps of all.", "percentunit", Query(f"{step} / ({total} > 0)"), decimals=1),
        number("Step", "Completed optimizer steps.", "none", Query(step)),
        number("Left", "Steps that are left, at the present duration of a step.", "s", Query(left)),
        number(
            "MFU", "Model FLOP/s utilisation, mean of 20 steps.", "percentunit", Query(one(trainer.MFU)), decimals=1
        ),
        number("Goodput", "Share of its life that was productive.", "percentunit", Query(one(operator.JOB_GOODPUT))),
        number("Restarts", "Restarts by faults, drains and preemptions.", "none", Query(restarts), bad_from=1),
        number(
            "Newest checkpoint",
            "Its age: what a fault now would cost.",
            "s",
            Query(f"time() - {one(operator.CHECKPOINT_SUCCESS)}"),
            decimals=0,
        ),
    ]


def _learning() -> list[Panel]:
    return [
        lines(
            "Loss",
            "Of training, each step, and of held-out rows at each validation.",
            "none",
            Query(one(trainer.LOSS), "training"),
            Query(one(trainer.VALIDATION_LOSS), "validation"),
            Query(one(trainer.BEST_VALIDATION_LOSS), "best validation (early stopping)"),
        ),
        lines(
            "Gradient norm",
            "Of the whole gradient, before clipping. Spikes that grow come before a loss that diverges.",
            "none",
            Query(one(trainer.GRAD_NORM), "gradient norm"),
            log=True,
        ),
        lines("Learning rate", "Of the last step.", "sci", Query(one(trainer.LEARNING_RATE), "learning rate")),
    ]


def _speed() -> list[Panel]:
    parts = by("sum", "part", rate(trainer.PART_SECONDS, suffix="_sum"))
    steps = f"scalar(sum({rate(trainer.STEP_SECONDS, suffix='_count')}))"
    tokens = by("sum", "", rate(trainer.TOKENS))
    return [
        lines(
            "Tokens per second",
            "Of the whole job: mean of the last 20 steps, and what the counter says, standstills included.",
            "short",
            Query(one(trainer.THROUGHPUT), "of the last steps"),
            Query(tokens, "over all time"),
        ),
        lines(
            "MFU",
            "Model FLOP/s utilisation; the basis is an entry of the hardware table, or measured on processors.",
            "percentunit",
            Query(one(trainer.MFU, "basis"), "of {{basis}}"),
        ),
        lines(
            "TFLOP/s per device",
            "10^12 operations of the model per second and device.",
            "none",
            Query(one(trainer.TFLOPS), "TFLOP/s"),
        ),
        lines(
            "Parts of a step",
            "Seconds per step that went into each part, on the job's first rank.",
            "s",
            Query(f"{parts} / {steps}", "{{part}}"),
            stacked=True,
        ),
        lines(
            "Duration of a step",
            "Checkpoints and validation left out.",
            "s",
            Query(mean(trainer.STEP_SECONDS), "mean"),
            *(Query(quantile(share, trainer.STEP_SECONDS), f"{share:.0%}") for share in (0.5, 0.99)),
        ),
        lines(
            "Steps",
            "A curve that falls back shows what a restart repeats.",
            "none",
            Query(one(operator.JOB_STEP), "completed"),
            Query(one(operator.CHECKPOINT_STEP), "in the newest checkpoint"),
            Query(one(operator.JOB_TOTAL_STEPS), "of the whole run"),
        ),
    ]


def _ranks() -> list[Panel]:
    return [
        lines(
            "Skew of each rank",
            "By how much a rank worked longer than the mean of all in the last step; the straggler has the largest.",
            "s",
            Query(by("max", "rank", shown(trainer.SKEW_SECONDS)), "rank {{rank}}"),
        ),
        lines(
            "Busy time of each rank",
            "How long a rank worked in the last step before it waited for all others.",
            "s",
            Query(by("max", "rank", shown(trainer.BUSY_SECONDS)), "rank {{rank}}"),
        ),
        lines(
            "Peak memory of each rank",
            "The most that a rank ever held: allocated on its device, else resident.",
            "bytes",
            Query(by("max", "rank", shown(trainer.PEAK_MEMORY)), "rank {{rank}}"),
        ),
        lines(
            "Ranks alive",
            "Of each pod.",
            "none",
            Query(by("max", "instance", shown(trainer.RANKS_ALIVE)), "{{instance}}"),
            stacked=True,
        ),
    ]


def _checkpoints() -> list[Panel]:
    age = f"time() - {one(operator.CHECKPOINT_SUCCESS)}"
    failures = by("sum", "reason", shown(trainer.CHECKPOINT_FAILURES))
    return [
        lines("Age of the newest checkpoint", "Falls to 0 with each commit.", "s", Query(age, "age")),
        lines(
            "Stall",
            "How long training stood still for a save, mean of an hour.",
            "s",
            Query(mean(trainer.STALL_SECONDS, window=HOUR), "stall"),
        ),
        lines(
            "Upload",
            "From a save to its commit, mean of an hour.",
            "s",
            Query(mean(trainer.UPLOAD_SECONDS, window=HOUR), "upload"),
        ),
        lines(
            "Failed saves",
            "Saves, and tries to bring one into the store, that failed since the pods began.",
            "none",
            Query(or_zero(failures, "reason"), "{{reason}}"),
        ),
    ]


def _time() -> list[Panel]:
    return [
        lines(
            "Where the time goes",
            "Seconds per second in each category.",
            "percentunit",
            Query(by("sum", "category", rate(operator.JOB_SECONDS)), "{{category}}"),
            stacked=True,
        ),
        bars(
            "Seconds of its life",
            "By category; they add up to the job's age.",
            "s",
            Query(by("max", "category", shown(operator.JOB_SECONDS)), "{{category}}"),
        ),
        lines(
            "Attempts",
            "How often the gang was formed.",
            "none",
            Query(one(operator.JOB_ATTEMPT), "attempt"),
        ),
        bars(
            "Restarts by cause",
            "Since the job was created.",
            "none",
            Query(or_zero(by("max", "cause", shown(operator.JOB_RESTARTS)), "cause"), "{{cause}}"),
        ),
        bars(
            "Seconds lost by cause",
            "From each fault until its last step was passed again.",
            "s",
            Query(or_zero(by("max", "cause", shown(operator.JOB_LOST_SECONDS)), "cause"), "{{cause}}"),
        ),
        lines(
            "Restore",
            "How long ranks took to verify and load the checkpoint that they resumed from, mean.",
            "s",
            Query(lifetime_mean(trainer.RESTORE_SECONDS), "restore"),
        ),
    ]
