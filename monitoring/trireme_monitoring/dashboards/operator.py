"""The operator: does it lead, hear and keep up, and what does it do."""

from trireme_monitoring.board import Board, Column, Panel, Query, lines, number, rows
from trireme_monitoring.dashboards.variables import INSTANCE, JOBS, KIND, NAMESPACE
from trireme_monitoring.promql import by, mean, one, or_zero, quantile, rate, shown
from trireme_operator import metrics as operator

REPLICA = "{{instance}}"


def operator_board() -> Board:
    """The dashboard."""
    board = Board(
        "operator",
        "Trireme / Operator",
        "The operator's replicas: leadership, watches, queue, requests, rights, and the jobs that they look after.",
        [INSTANCE, NAMESPACE, JOBS, KIND],
    )
    board.row("Now", *_now(), across=6)
    board.row("Does it hear and may it act", *_hearing())
    board.row("Does it keep up", *_keeping_up())
    board.row("What it asks for and does", *_requests())
    board.row("What it looks after", *_jobs())
    return board


def _now() -> list[Panel]:
    relist = f"max(time() - {by('min', 'resource', shown(operator.LAST_RELIST))})"
    missing = or_zero(f"sum({by('max', 'group, resource, verb', shown(operator.MISSING_PERMISSION))})")
    mismatched = or_zero(f"sum({by('max', 'resource', shown(operator.CRD_MISMATCH))})")
    return [
        number("Replicas", "That are scraped.", "none", Query(f"count({shown(operator.LEADER)})")),
        number("Leaders", "1, but for moments when it changes.", "none", Query(f"sum({shown(operator.LEADER)})")),
        number(
            "Ready",
            "Replicas that have listed everything and lack nothing.",
            "none",
            Query(f"sum({shown(operator.READY)})"),
        ),
        number(
            "Oldest list", "How long ago a full list was last answered.", "s", Query(relist), decimals=0, bad_from=300
        ),
        number("Permissions missing", "Rights that it needs and does not have.", "none", Query(missing), bad_from=1),
        number("CRDs that differ", "Served with another schema than its own.", "none", Query(mismatched), bad_from=1),
    ]


def _hearing() -> list[Panel]:
    missing = by("max", "group, resource, verb", shown(operator.MISSING_PERMISSION))
    return [
        lines(
            "Age of the last full list",
            "Of each resource; every --resync-seconds there is one. One that only rises is refused or not answered.",
            "s",
            Query(
                f"time() - {by('min', 'instance, resource', shown(operator.LAST_RELIST))}",
                f"{REPLICA} {{{{resource}}}}",
            ),
        ),
        lines(
            "Age of the last watch event",
            "Of each resource; where nothing changes there is none, so that age alone means nothing.",
            "s",
            Query(
                f"time() - {by('max', 'instance, resource', shown(operator.LAST_WATCH_EVENT))}",
                f"{REPLICA} {{{{resource}}}}",
            ),
        ),
        lines(
            "Missing permissions",
            "Each right that it needs and does not have.",
            "none",
            Query(or_zero(missing, "verb"), "{{verb}} {{resource}} {{group}}"),
        ),
        lines(
            "CRDs of another version",
            "1 where the cluster serves another schema than this operator's.",
            "none",
            Query(by("max", "resource", shown(operator.CRD_MISMATCH)), "{{resource}}"),
        ),
        lines("Leader", "1 while a replica leads.", "none", Query(shown(operator.LEADER), REPLICA), stacked=True),
        rows(
            "Versions",
            "Of each replica.",
            {"instance": "Replica", "version": "Version"},
            Column("", by("max", "instance, version", shown(operator.BUILD_INFO)), hidden=True),
        ),
    ]


def _keeping_up() -> list[Panel]:
    errors = by("sum", "kind, error", rate(operator.RECONCILE_ERRORS))
    return [
        lines(
            "Duration of a pass",
            "Of one look at a job or service.",
            "s",
            *(
                Query(quantile(share, operator.RECONCILE_SECONDS, "kind"), f"{{{{kind}}}} {share:.0%}")
                for share in (0.5, 0.99)
            ),
        ),
        lines(
            "Passes per second",
            "By kind.",
            "ops",
            Query(by("sum", "kind", rate(operator.RECONCILE_SECONDS, suffix="_count")), "{{kind}}"),
            stacked=True,
        ),
        lines(
            "Failed passes per second",
            "Each is tried again, later each time.",
            "ops",
            Query(or_zero(errors, "error"), "{{kind}} {{error}}"),
        ),
        lines("Queue", "Jobs and services that are due and wait.", "none", Query(shown(operator.QUEUE_DEPTH), REPLICA)),
        lines("Oldest in the queue", "How long it has waited.", "s", Query(shown(operator.QUEUE_AGE), REPLICA)),
        lines("Ready", "1 when a replica lacks nothing.", "none", Query(shown(operator.READY), REPLICA)),
    ]


def _requests() -> list[Panel]:
    failed = by("sum", "verb, resource, code", rate(operator.API_REQUESTS, 'code!~"2.."'))
    return [
        lines(
            "Requests to the API server per second",
            "By verb.",
            "reqps",
            Query(by("sum", "verb", rate(operator.API_REQUESTS)), "{{verb}}"),
            stacked=True,
        ),
        lines(
            "Refused or unanswered",
            "Requests per second without a code 2xx; 0 is no answer, 409 the normal outcome of a race.",
            "reqps",
            Query(or_zero(failed, "code"), "{{verb}} {{resource}} {{code}}"),
        ),
        lines(
            "Duration of requests",
            "To the API server.",
            "s",
            Query(quantile(0.99, operator.API_SECONDS, "verb"), "{{verb}} 99%"),
            Query(mean(operator.API_SECONDS, "verb"), "{{verb}} mean"),
        ),
        lines(
            "Requests to agents per second",
            "By outcome; what is not ok is a silent, busy or refusing agent.",
            "reqps",
            Query(by("sum", "method, outcome", rate(operator.AGENT_REQUESTS)), "{{method}} {{outcome}}"),
            stacked=True,
        ),
        lines(
            "Actions per second",
            "What it changes in the cluster.",
            "ops",
            Query(by("sum", "action", rate(operator.ACTIONS)), "{{action}}"),
            stacked=True,
        ),
    ]


def _jobs() -> list[Panel]:
    return [
        lines(
            "Jobs by state",
            "As the leader has them.",
            "none",
            Query(f"count by (state) ({one(operator.JOB_STATE, 'state')})", "{{state}}"),
            stacked=True,
        ),
        lines(
            "Waiting jobs",
            "By the reason of their condition.",
            "none",
            Query(or_zero(by("count", "reason", one(operator.JOB_WAITING, "reason")), "reason"), "{{reason}}"),
            stacked=True,
        ),
        lines("Attempts", "Of each job.", "none", Query(one(operator.JOB_ATTEMPT), "{{namespace}}/{{job_name}}")),
    ]
