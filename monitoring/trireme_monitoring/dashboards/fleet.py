"""All jobs and services of the cluster: what runs, what waits, what it costs."""

from trireme_monitoring.board import Board, Column, Panel, Query, bars, lines, number, rows
from trireme_monitoring.dashboards.variables import JOBS, KIND, NAMESPACE, SERVICES
from trireme_monitoring.promql import JOB, by, one, or_zero, rate, series, shown
from trireme_operator import metrics as operator
from trireme_trainer.metrics import definitions as trainer

OPEN_JOB = "/d/trireme-job?var-namespace=${__data.fields.Namespace}&var-job=${__data.fields.Job}"
LOST = 'category=~"queued|scheduling|startup|restore|recompute|down"'
"""The categories that `trireme_job_lost_seconds_total` is made of."""


def fleet() -> Board:
    """The dashboard."""
    board = Board(
        "fleet",
        "Trireme / Fleet",
        "All jobs and services: states, devices, goodput, MFU and the queue.",
        [NAMESPACE, JOBS, KIND, SERVICES],
        since="now-24h",
    )
    board.row("Now", *_now(), across=6)
    board.row("Each job", _table(), across=1)
    board.row("Jobs", *_jobs())
    board.row("Where the time goes", *_time())
    board.row("Queue and devices", *_queue())
    return board


def _count(state: str) -> str:
    jobs = one(operator.JOB_STATE, matchers=(f'state="{state}"',))
    return or_zero(f"count({jobs})")


def _now() -> list[Panel]:
    failed = or_zero(f"count({one(operator.JOB_FAILED, 'reason')})")
    productive, all_seconds = (
        by("sum", "", rate(operator.JOB_SECONDS, matcher, window="$__range"))
        for matcher in ('category="productive"', 'category!="suspended"')
    )
    allocated = by("sum", "resource", one(operator.JOB_DEVICES_ALLOCATED, "resource"))
    return [
        number("Running", "Jobs whose ranks train.", "none", Query(_count("Running"))),
        number("Waiting", "Jobs that wait for another job, for inputs or for room.", "none", Query(_waiting())),
        number("Restarting", "Jobs on their way back from a fault.", "none", Query(_count("Restarting")), bad_from=1),
        number("Failed", "Failed jobs that have not been deleted.", "none", Query(failed), bad_from=1),
        number(
            "Goodput",
            "Share of the time range that jobs spent on steps that none of their attempts had done before.",
            "percentunit",
            Query(f"{productive} / {all_seconds}"),
            decimals=1,
        ),
        number("Devices in use", "Devices of jobs' pods that are on a node.", "none", Query(allocated, "{{resource}}")),
    ]


def _waiting() -> str:
    return or_zero(f"count({one(operator.JOB_WAITING)})")


def _table() -> Panel:
    step, total = one(operator.JOB_STEP), one(operator.JOB_TOTAL_STEPS)
    restarts = by("sum", JOB, one(operator.JOB_RESTARTS, "cause"))
    columns = [
        Column("Progress", f"{step} / ({total} > 0)", "percentunit"),
        Column("Goodput", one(operator.JOB_GOODPUT), "percentunit"),
        Column("Restarts", f"{restarts} or 0 * {one(operator.JOB_ATTEMPT)}"),
        Column("Newest checkpoint", f"time() - {one(operator.CHECKPOINT_SUCCESS)}", "s"),
        Column("Tokens/s", one(trainer.THROUGHPUT)),
        Column("MFU", one(trainer.MFU), "percentunit"),
        Column("Age", f"time() - {one(operator.JOB_CREATED)}", "s"),
        Column("State", one(operator.JOB_STATE, "state"), hidden=True),
        Column("What it is", one(operator.JOB_INFO, "model", "engine", "layout"), hidden=True),
    ]
    names = {"namespace": "Namespace", "job_name": "Job", "kind": "Kind", "state": "State"}
    labels = {**names, "model": "Model", "engine": "Engine", "layout": "Layout"}
    about = "A line for each job; its name leads to the job's own dashboard."
    return rows("Jobs", about, labels, *columns, link=OPEN_JOB, link_on="Job")


def _jobs() -> list[Panel]:
    states = f"count by (state) ({one(operator.JOB_STATE, 'state')})"
    services = f"count by (state) ({one(operator.SERVICE_STATE, 'state')})"
    return [
        lines("Jobs by state", "How many jobs are in each state.", "none", Query(states, "{{state}}"), stacked=True),
        lines("Services by state", "Of InferenceServices.", "none", Query(services, "{{state}}"), stacked=True),
        lines(
            "Failed jobs by reason",
            "Jobs that have failed and not been deleted.",
            "none",
            Query(or_zero(by("count", "reason", one(operator.JOB_FAILED, "reason")), "reason"), "{{reason}}"),
            stacked=True,
        ),
        lines(
            "MFU",
            "Model FLOP/s utilisation of each job. On processors it refers to what was measured there.",
            "percentunit",
            Query(one(trainer.MFU), "{{namespace}}/{{job_name}}"),
        ),
        lines(
            "Tokens per second",
            "Of each job.",
            "short",
            Query(one(trainer.THROUGHPUT), "{{namespace}}/{{job_name}}"),
            stacked=True,
        ),
        lines(
            "Goodput of each job",
            "Share of a job's life so far, suspensions left out, that was productive.",
            "percentunit",
            Query(one(operator.JOB_GOODPUT), "{{namespace}}/{{job_name}}"),
            top=1,
        ),
    ]


def _time() -> list[Panel]:
    seconds = by("sum", "category", rate(operator.JOB_SECONDS))
    lost, wanted = (by("sum", "", rate(operator.JOB_SECONDS, matcher)) for matcher in (LOST, 'category!="suspended"'))
    return [
        lines(
            "Seconds by category",
            "What jobs do: seconds of jobs per second, so that the height is the number of jobs.",
            "none",
            Query(seconds, "{{category}}"),
            stacked=True,
        ),
        lines(
            "Share lost",
            "Share of the jobs' time that went into queueing, scheduling, starting, restoring, repeating steps and "
            "being down.",
            "percentunit",
            Query(f"{lost} / {wanted}", "lost"),
            top=1,
        ),
        bars(
            "Seconds lost by cause",
            "Over the lives of all jobs that exist, from each fault until its last step was passed again.",
            "s",
            Query(by("sum", "cause", one(operator.JOB_LOST_SECONDS, "cause")), "{{cause}}"),
        ),
        bars(
            "Restarts by cause",
            "Over the lives of all jobs that exist.",
            "none",
            Query(by("sum", "cause", one(operator.JOB_RESTARTS, "cause")), "{{cause}}"),
        ),
        lines(
            "Restarts",
            "Of each job, since it was created.",
            "none",
            Query(by("sum", JOB, one(operator.JOB_RESTARTS, "cause")), "{{namespace}}/{{job_name}}"),
        ),
        lines(
            "Age of the newest checkpoint",
            "Of running jobs: what a fault now would cost at most.",
            "s",
            Query(
                f"time() - {one(operator.CHECKPOINT_SUCCESS)} and on ({JOB}) "
                + one(operator.JOB_STATE, matchers=('state="Running"',)),
                "{{namespace}}/{{job_name}}",
            ),
        ),
    ]


def _queue() -> list[Panel]:
    waiting = one(operator.JOB_WAITING)
    age = f"max((time() - {one(operator.JOB_CREATED)}) and on ({JOB}) {waiting})"
    queued = by("sum", "category", rate(operator.JOB_SECONDS, 'category=~"queued|scheduling"'))
    services_requested, services_allocated = (
        by("sum", "resource", one(metric, "resource"))
        for metric in (operator.SERVICE_DEVICES_REQUESTED, operator.SERVICE_DEVICES_ALLOCATED)
    )
    wanted, held = (
        by("sum", "resource", one(metric, "resource"))
        for metric in (operator.JOB_DEVICES_REQUESTED, operator.JOB_DEVICES_ALLOCATED)
    )
    there = by("max", "resource", series(operator.CLUSTER_DEVICES))
    return [
        lines(
            "Waiting jobs by reason",
            "The reason is that of the condition InputsReady or Scheduled.",
            "none",
            Query(or_zero(by("count", "reason", one(operator.JOB_WAITING, "reason")), "reason"), "{{reason}}"),
            stacked=True,
        ),
        lines("Oldest waiting job", "Age of the oldest job that waits.", "s", Query(or_zero(age), "age")),
        lines(
            "Time in the queue",
            "Seconds per second that jobs wait for room, or have pods that are not all on nodes.",
            "none",
            Query(queued, "{{category}}"),
            stacked=True,
        ),
        lines(
            "Devices",
            "What ready nodes have, and what jobs ask for and hold.",
            "none",
            Query(there, "{{resource}} on ready nodes"),
            Query(wanted, "{{resource}} asked for by jobs"),
            Query(held, "{{resource}} held by jobs"),
        ),
        lines(
            "Devices of services",
            "What services ask for and hold. Those on processors have none.",
            "none",
            Query(services_requested, "{{resource}} asked for"),
            Query(services_allocated, "{{resource}} held"),
        ),
        lines(
            "Mean use of devices",
            "Share of time in which a kernel ran, mean over the devices of all jobs (NVML).",
            "percentunit",
            Query(f"avg by (namespace, job_name) ({shown(trainer.DEVICE_UTILISATION)})", "{{namespace}}/{{job_name}}"),
            top=1,
        ),
    ]
