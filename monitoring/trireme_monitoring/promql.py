"""PromQL made from the metrics' definitions: what asks for a series or label that nobody exports is refused here.

`series` is a plain selector, for alerts. `shown` narrows it down to what a dashboard's variables choose.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from trireme.metrics import JOB_LABELS, SERVICE_LABELS, Metric, MetricType

TARGET_LABELS = ("namespace", "job", "instance", "pod")
"""Labels that Prometheus itself puts on what a process says of itself: where it was scraped."""

JOB = ", ".join(JOB_LABELS)
SERVICE = ", ".join(SERVICE_LABELS)
_SCOPES = (
    ("job_name", ('namespace=~"$namespace"', 'job_name=~"$job"', 'kind=~"$kind"')),
    ("service_name", ('namespace=~"$namespace"', 'service_name=~"$service"')),
)
_PROCESS_SCOPE = ('instance=~"$instance"',)
"""Of what a process of the operator says of itself."""

_MATCHER = re.compile(r'([a-z_]+)(?:=~|!~|!=|=)"[^"]*"')
_SUFFIXES = {"", "_bucket", "_sum", "_count"}


class UnknownLabel(ValueError):
    """A query names a label that the metric does not have."""


def series(metric: Metric, *matchers: str, suffix: str = "") -> str:
    """A selector of a metric's series; matchers as `state="Running"`.

    Raises UnknownLabel for a matcher of a label that the metric lacks.
    """
    assert suffix in _SUFFIXES, suffix
    assert (suffix != "") == (metric.type is MetricType.HISTOGRAM), f"{metric.name}{suffix}"
    for matcher in matchers:
        found = _MATCHER.fullmatch(matcher)
        if found is None or found[1] not in (*metric.labels, *TARGET_LABELS):
            raise UnknownLabel(f"{metric.name} has no label for {matcher}: {', '.join(metric.labels)}")
    chosen = f"{{{', '.join(matchers)}}}" if matchers else ""
    return f"{metric.name}{suffix}{chosen}"


def shown(metric: Metric, *matchers: str, suffix: str = "") -> str:
    """The same, of what the dashboard's variables choose."""
    scope = next((scope for label, scope in _SCOPES if label in metric.labels), _PROCESS_SCOPE)
    return series(metric, *scope, *matchers, suffix=suffix)


def by(function: str, labels: Iterable[str] | str, expression: str) -> str:
    """An aggregation; `labels` as names, or as one text of names and commas."""
    names = labels if isinstance(labels, str) else ", ".join(labels)
    return f"{function} by ({names}) ({expression})" if names else f"{function}({expression})"


def one(metric: Metric, *labels: str, matchers: tuple[str, ...] = ()) -> str:
    """A fact of each job or service, with some more labels: told once, whoever of the operator's replicas told it."""
    own = SERVICE_LABELS if "service_name" in metric.labels else JOB_LABELS
    return by("max", _known(metric, (*own, *labels)), shown(metric, *matchers))


def rate(metric: Metric, *matchers: str, suffix: str = "", window: str = "$__rate_interval") -> str:
    """Increase per second of a counter, or of a histogram's `_sum`, `_count` or `_bucket`."""
    return f"rate({shown(metric, *matchers, suffix=suffix)}[{window}])"


def mean(metric: Metric, *labels: str, window: str = "$__rate_interval") -> str:
    """Mean of what a histogram saw; of what is rare, over a longer window."""
    names = _known(metric, labels)
    total, count = (by("sum", names, rate(metric, suffix=suffix, window=window)) for suffix in ("_sum", "_count"))
    return f"{total} / {count}"


def lifetime_mean(metric: Metric, *labels: str) -> str:
    """Mean of all that a histogram saw since its process began: also of what happened once, at its beginning."""
    names = _known(metric, labels)
    total, count = (by("sum", names, shown(metric, suffix=suffix)) for suffix in ("_sum", "_count"))
    return f"{total} / {count}"


def quantile(share: float, metric: Metric, *labels: str, window: str = "$__rate_interval") -> str:
    """A quantile of what a histogram saw, as exact as its buckets are narrow."""
    names = _known(metric, labels)
    buckets = by("sum", ("le", *names), rate(metric, suffix="_bucket", window=window))
    return f"histogram_quantile({share:g}, {buckets})"


def or_zero(expression: str, label: str = "") -> str:
    """0 where there is no series, for counts of what should not happen; `label` is "none" there."""
    zero = f'label_replace(vector(0), "{label}", "none", "", "")' if label else "vector(0)"
    return f"{expression} or on () {zero}"


def _known(metric: Metric, labels: tuple[str, ...]) -> tuple[str, ...]:
    for label in labels:
        if label not in (*metric.labels, *TARGET_LABELS):
            raise UnknownLabel(f"{metric.name} has no label {label}: {', '.join(metric.labels)}")
    return labels
