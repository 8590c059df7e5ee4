"""The alerts: what is wrong long enough that a person should know, each with a page that says what to do.

They know nothing of dashboards' variables. Facts of jobs and services are told by the operator's leader; `max by`
over their own labels makes one of what two replicas told while they changed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import yaml

from trireme.metrics import Metric
from trireme_monitoring.promql import JOB, SERVICE, by, series
from trireme_operator import metrics as operator
from trireme_trainer.metrics import definitions as trainer

RUNBOOKS = "https://github.com/trireme-dev/trireme/blob/main/docs/runbooks"
HEADER = "# Made by `make dashboards` from monitoring/trireme_monitoring/alerts.py; do not edit.\n"
JOB_NAME = "{{ $labels.kind }} {{ $labels.namespace }}/{{ $labels.job_name }}"
SERVICE_NAME = "InferenceService {{ $labels.namespace }}/{{ $labels.service_name }}"
OF_JOB = f"on ({JOB})"

NO_PROGRESS_MINUTES = 15
STALE_SECONDS, STALEST_SECONDS = 3600, 14400
"""No checkpoint is stale before the first, and every one is after the second."""
RESTARTS, RESTARTS_MINUTES = 3, 30
MFU_SHARE = 0.8
STRAGGLER_SHARE = 0.15
DEAF_SECONDS = 300


@dataclass(frozen=True)
class Alert:
    """One alert. `summary` and `description` are templates of Prometheus."""

    name: str
    expr: str
    lasts: str
    """How long it has to be so, as Prometheus' `for`."""
    severity: str
    """`critical`: work stands still or is lost; `warning`: it goes worse than it should."""
    summary: str
    description: str

    @property
    def runbook(self) -> str:
        """Name of its page in docs/runbooks: TriremeNaNLoss has nan-loss.md."""
        words = re.findall(r"NaN|[A-Z][a-z]+", self.name.removeprefix("Trireme"))
        return "-".join(words).lower()

    def to_rule(self) -> dict[str, object]:
        """As a file of rules has it."""
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.lasts,
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{RUNBOOKS}/{self.runbook}.md",
            },
        }


def job_fact(metric: Metric, *matchers: str) -> str:
    """A fact of each job, told once."""
    return by("max", JOB, series(metric, *matchers))


RUNNING = job_fact(operator.JOB_STATE, 'state="Running"')
TRAINED = 'category=~"productive|recompute"'


def _no_progress() -> Alert:
    wants = job_fact(operator.JOB_STATE, 'state=~"Starting|Running|Restarting"')
    moved = by("max", JOB, f"changes({series(operator.JOB_STEP)}[{NO_PROGRESS_MINUTES}m])")
    return Alert(
        "TriremeNoProgress",
        f"{wants}\nunless {OF_JOB}\n{moved} > 0",
        f"{NO_PROGRESS_MINUTES}m",
        "critical",
        f"{JOB_NAME} makes no steps.",
        f"Its ranks should train, and no step was completed for {2 * NO_PROGRESS_MINUTES} minutes.",
    )


def _checkpoint_stale() -> Alert:
    newest = f"({job_fact(operator.CHECKPOINT_SUCCESS)} or {job_fact(operator.JOB_CREATED)})"
    seconds = series(operator.JOB_SECONDS, 'category=~"productive|recompute|checkpointStall"')
    usual = f"{by('sum', JOB, by('max', f'{JOB}, category', seconds))} / {job_fact(operator.CHECKPOINT_COMMITS)}"
    trained = by("sum", JOB, f"increase({series(operator.JOB_SECONDS, TRAINED)}[1h])")
    return Alert(
        "TriremeCheckpointStale",
        f"time() - {newest}\n> clamp(2 * {usual}, {STALE_SECONDS}, {STALEST_SECONDS})\n"
        f"and {OF_JOB}\n{trained} > 0.75 * 3600",
        "5m",
        "critical",
        f"The newest checkpoint of {JOB_NAME} is old.",
        "It was committed {{ $value | humanizeDuration }} ago, more than twice as long as from one to the next until "
        "now, while the job trained. A fault now costs all steps since.",
    )


def _restart_storm() -> Alert:
    # A series of a cause begins with the first restart, so that its increase would lack that one: hence the zero.
    restarts = by("sum", JOB, by("max", f"{JOB}, cause", series(operator.JOB_RESTARTS)))
    counted = f"({restarts} or 0 * {job_fact(operator.JOB_ATTEMPT)})"
    return Alert(
        "TriremeRestartStorm",
        f"increase({counted}[{RESTARTS_MINUTES}m:30s]) >= {RESTARTS}",
        "0m",
        "warning",
        f"{JOB_NAME} restarts again and again.",
        f'{{{{ printf "%.0f" $value }}}} restarts within {RESTARTS_MINUTES} minutes.',
    )


def _mfu_drop() -> Alert:
    mfu = job_fact(trainer.MFU)
    return Alert(
        "TriremeMfuDrop",
        f"avg_over_time({mfu}[10m:30s])\n< {MFU_SHARE:g} * quantile_over_time(0.5, {mfu}[6h:5m])\n"
        f"and {OF_JOB}\n{RUNNING}",
        "15m",
        "warning",
        f"{JOB_NAME} has become slower.",
        f"Its MFU is {{{{ $value | humanizePercentage }}}}, under {MFU_SHARE:.0%} of its own median over six hours.",
    )


def _straggler() -> Alert:
    skew = by("max", f"{JOB}, rank, instance, pod", f"avg_over_time({series(trainer.SKEW_SECONDS)}[10m])")
    total, count = (
        by("sum", JOB, f"rate({series(trainer.STEP_SECONDS, suffix=suffix)}[10m])") for suffix in ("_sum", "_count")
    )
    return Alert(
        "TriremeStraggler",
        f"{skew}\n> {OF_JOB} group_left ()\n{STRAGGLER_SHARE:g} * ({total} / {count})",
        "10m",
        "warning",
        f"Rank {{{{ $labels.rank }}}} of {JOB_NAME} holds up all others.",
        "In each step it works {{ $value | humanizeDuration }} longer than the mean of all ranks, "
        f"more than {STRAGGLER_SHARE:.0%} of a step. Pod: {{{{ $labels.pod }}}} ({{{{ $labels.instance }}}}).",
    )


def _nan_loss() -> Alert:
    failed = series(operator.JOB_FAILED, 'reason="NaNLoss"')
    return Alert(
        "TriremeNaNLoss",
        f"{by('max', JOB, failed)}\nunless {OF_JOB}\n{by('max', JOB, f'{failed} offset 1d')}",
        "0m",
        "critical",
        f"{JOB_NAME} has failed: its loss or gradient was not a number.",
        "No checkpoint has such weights, and no restart helps. This ends when the job is deleted, or after a day.",
    )


def _pending_too_long() -> Alert:
    waits = job_fact(operator.JOB_WAITING, 'reason!~"WaitingForUpstream|WaitingForInputs"')
    query = f"{operator.JOB_WAITING.name}{{namespace=%q,job_name=%q,kind=%q}}"
    ask = f"printf `{query}` $labels.namespace $labels.job_name $labels.kind | query"
    reason = f"{{{{ range {ask} }}}}{{{{ .Labels.reason }}}} {{{{ end }}}}"
    return Alert(
        "TriremePendingTooLong",
        waits,
        "30m",
        "warning",
        f"{JOB_NAME} has waited for half an hour.",
        f"It may run and does not. What it waits for, by its condition: {reason}",
    )


def _operator_deaf() -> Alert:
    leader = series(operator.LEADER)
    heard = by("max", "namespace, job, instance, pod, resource", series(operator.LAST_RELIST))
    return Alert(
        "TriremeOperatorDeaf",
        f"absent({leader})\nor\n{by('max', 'namespace, job', leader)} == 0\nor\ntime() - {heard} > {DEAF_SECONDS}",
        "5m",
        "critical",
        "Trireme's operator does not look after jobs and services.",
        "No replica is scraped, or none leads, or the API server has not answered a full list"
        "{{ with $labels.resource }} of {{ . }}{{ end }} for five minutes. "
        "Ranks that run train on; a fault is not mended.",
    )


def _no_replica_ready() -> Alert:
    ready, wanted = (by("max", SERVICE, series(m)) for m in (operator.SERVICE_READY, operator.SERVICE_WANTED))
    waits = by("max", SERVICE, series(operator.SERVICE_STATE, 'state="WaitingForModel"'))
    return Alert(
        "TriremeServiceNotReady",
        f"{ready} == 0\nand on ({SERVICE})\n{wanted} > 0\nunless on ({SERVICE})\n{waits}",
        "10m",
        "critical",
        f"{SERVICE_NAME} has no replica that answers.",
        "Every request is refused: no replica is ready, and the model that it serves is there.",
    )


def _replicas_missing() -> Alert:
    ready, wanted = (by("max", SERVICE, series(m)) for m in (operator.SERVICE_READY, operator.SERVICE_WANTED))
    return Alert(
        "TriremeServiceNotReady",
        f"{wanted} - ({ready} > 0) > 0",
        "20m",
        "warning",
        f"{SERVICE_NAME} lacks replicas.",
        "{{ $value }} of its replicas are not ready.",
    )


def alerts() -> list[Alert]:
    """All of them."""
    return [
        _no_progress(),
        _checkpoint_stale(),
        _restart_storm(),
        _mfu_drop(),
        _straggler(),
        _nan_loss(),
        _pending_too_long(),
        _operator_deaf(),
        _no_replica_ready(),
        _replicas_missing(),
    ]


class _Dumper(yaml.SafeDumper):
    """Texts of several lines stand as such."""


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def rules_file() -> str:
    """The alerts as Prometheus reads them."""
    group = {"name": "trireme", "rules": [alert.to_rule() for alert in alerts()]}
    return HEADER + yaml.dump({"groups": [group]}, Dumper=_Dumper, sort_keys=False, width=116)
