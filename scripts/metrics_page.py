"""Write docs/metrics.md's tables from every process's definitions: `python scripts/metrics_page.py docs/metrics.md`.

What stands before the marker is written by hand and stays.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from trireme.metrics import LABEL_MEANINGS, Metric, MetricGroup
from trireme_operator import metrics as operator
from trireme_serving import metrics as serving
from trireme_trainer.metrics import definitions as trainer

BEGIN = "<!-- Below: generated from the code by `make docs`; do not edit. -->"
GROUPS: tuple[MetricGroup, ...] = (*trainer.GROUPS, *operator.GROUPS, *serving.GROUPS)


def page(existing: str) -> str:
    """The page with its tables renewed. Raises ValueError without the marker."""
    written, marker, _ = existing.partition(BEGIN)
    if not marker:
        raise ValueError(f"the page has no line {BEGIN!r}")
    sections = [_section(group) for group in GROUPS]
    return "\n".join([f"{written}{BEGIN}\n", *sections, _parts(), _measures(), _labels()])


def _section(group: MetricGroup) -> str:
    rows = [f"| `{m.name}` | {m.type.value} | {_label_names(m)} | {_text(m)} |" for m in group.metrics]
    table = ["| Metric | Type | Labels | Meaning |", "|---|---|---|---|", *rows]
    return "\n".join([f"## {group.title}", "", group.text, "", *table, ""])


def _text(metric: Metric) -> str:
    return metric.help.replace("|", "\\|") + (" *" if metric.optional else "")


def _label_names(metric: Metric) -> str:
    return ", ".join(f"`{name}`" for name in metric.labels)


def _rows(title: str, head: tuple[str, str], rows: Iterator[tuple[str, str]]) -> str:
    table = [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in rows)]
    return "\n".join([f"## {title}", "", *table, ""])


def _parts() -> str:
    return _rows("Parts of a step", ("`part`", "What it is"), iter(trainer.PARTS.items()))


def _measures() -> str:
    names = ((name, f"`{metric.name}`") for name, metric in trainer.MEASURES.items())
    return _rows("What an algorithm measures", ("In `status.progress.metrics`", "As a metric"), names)


def _labels() -> str:
    return _rows("Labels", ("Label", "Meaning"), iter(sorted(LABEL_MEANINGS.items())))


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(page(path.read_text()))
