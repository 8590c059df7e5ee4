"""docs/metrics.md is what the code exports, under names that Prometheus' users expect."""

import re
import sys
from pathlib import Path

import pytest

from trireme.metrics import LABEL_MEANINGS, Metric, MetricType
from trireme_trainer.metrics import definitions, parts

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

import metrics_page  # noqa: E402

METRICS = [metric for group in metrics_page.GROUPS for metric in group.metrics]
UNITS = ("_seconds", "_bytes", "_ratio", "_hertz", "_watts", "_celsius", "_nats", "_tokens")
OTHER_UNITS = re.compile(r"milliseconds|_ms\b|minutes|_mb\b|_gb\b|_mib\b|_gib\b|percent|_mhz\b|milliwatts|kelvin")


def test_the_page_is_what_make_docs_writes() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert metrics_page.page(page) == page, "run `make docs`"


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_and_labels_follow_the_conventions(metric: Metric) -> None:
    """Source: https://prometheus.io/docs/practices/naming/."""
    assert re.fullmatch(r"trireme(_[a-z0-9]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.type is MetricType.COUNTER)
    assert not OTHER_UNITS.search(metric.name), "base units"
    if metric.type is MetricType.HISTOGRAM:
        assert metric.name.endswith(UNITS)
        assert list(metric.buckets) == sorted(set(metric.buckets))
    assert set(metric.labels) <= LABEL_MEANINGS.keys()
    assert not {"job", "instance", "pod", "node", "uid", "pod_uid", "le"} & set(metric.labels), "the target's own"
    assert len(set(metric.labels)) == len(metric.labels)
    assert metric.help.endswith((".", "0."))


def test_a_name_is_exported_by_one_kind_of_process_and_every_label_is_used() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    assert {label for metric in METRICS for label in metric.labels} == LABEL_MEANINGS.keys()


def test_the_parts_of_a_step_that_are_timed_are_those_that_are_exported() -> None:
    timed = {value for name, value in vars(parts).items() if name.isupper() and isinstance(value, str)}
    assert timed == definitions.PARTS.keys()
