"""What PromQL queries of dashboards and alerts ask for, told by a parser: series, and the labels of what comes out.

Prometheus answers a query of a label that nobody writes with silence; here it is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml

from trireme.metrics import Metric, MetricType
from trireme_monitoring import engine
from trireme_operator import metrics as operator
from trireme_serving import metrics as serving
from trireme_trainer.metrics import definitions as trainer

FILES = Path(__file__).parents[1] / "charts" / "trireme" / "files"
TARGET_LABELS = {"namespace", "job", "instance", "pod"}
"""What Prometheus adds; the rest are the metrics' own."""
GROUPS = (*trainer.GROUPS, *operator.GROUPS, *serving.GROUPS)
DEFINED = (*(metric for group in GROUPS for metric in group.metrics), *engine.METRICS)
BUILT_IN = {"__rate_interval": "5m", "__range": "1h"}
Json = dict[str, Any]


def exported() -> dict[str, frozenset[str]]:
    """Labels of each series name that some process exports."""
    found: dict[str, frozenset[str]] = {}
    for metric in DEFINED:
        labels = frozenset(metric.labels) | TARGET_LABELS
        if metric.type is MetricType.HISTOGRAM:
            found |= {f"{metric.name}_sum": labels, f"{metric.name}_count": labels}
            found[f"{metric.name}_bucket"] = labels | {"le"}
        else:
            found[metric.name] = labels
    return found


EXPORTED = exported()
BASE: Mapping[str, Metric] = {
    f"{metric.name}{suffix}": metric
    for metric in DEFINED
    for suffix in (("_sum", "_count", "_bucket") if metric.type is MetricType.HISTOGRAM else ("",))
}
"""The definition behind each series name."""


@dataclass(frozen=True)
class Asked:
    """One query, and where it stands."""

    where: str
    expr: str
    legend: str = ""

    def filled(self, values: Mapping[str, str]) -> str:
        """With the dashboard's variables filled in. Raises KeyError for one without a value."""
        known = {**BUILT_IN, **values}
        return re.sub(r"\$(\w+)|\$\{(\w+)\}", lambda m: known[m[1] or m[2]], self.expr)


def dashboards() -> dict[str, Json]:
    """Every dashboard of the chart, by its name."""
    paths = sorted((FILES / "dashboards").glob("*.json"))
    return {path.stem.removeprefix("trireme-"): json.loads(path.read_text()) for path in paths}


def panels(board: Json) -> Iterator[Json]:
    """All panels but the rows."""
    yield from (panel for panel in board["panels"] if panel["type"] != "row")


def queries(panel: Json, board: str) -> list[Asked]:
    """Of one panel."""
    where = f"{board}: {panel['title']}"
    return [Asked(where, target["expr"], target["legendFormat"]) for target in panel["targets"]]


def marks(board: Json, name: str) -> list[Asked]:
    """Of a dashboard's annotations."""
    found = board["annotations"].get("list", [])
    return [Asked(f"{name}: mark {item['name']}", item["expr"], item["titleFormat"]) for item in found]


def rules() -> list[Json]:
    """All alerts of the chart."""
    documents = (yaml.safe_load(path.read_text()) for path in sorted((FILES / "rules").glob("*.yaml")))
    return [rule for document in documents for group in document["groups"] for rule in group["rules"]]


class WrongQuery(ValueError):
    """A query that Prometheus would answer with nothing."""


def selectors(expr: str) -> list[promql.VectorSelector]:
    """The series that a query asks for."""
    found: list[promql.VectorSelector] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql.VectorSelector):
            found.append(node)
        elif isinstance(node, promql.MatrixSelector):
            found.append(node.vector_selector)

    promql.walk(promql.parse(expr), visit)
    return list({str(selector): selector for selector in found}.values())


def labels_of(node: Any) -> set[str] | None:
    """Labels that the result of a query may have; None for a number. Raises WrongQuery."""
    match node:
        case promql.NumberLiteral() | promql.StringLiteral():
            return None
        case promql.VectorSelector():
            return _of_selector(node)
        case promql.MatrixSelector():
            return _of_selector(node.vector_selector)
        case promql.ParenExpr() | promql.UnaryExpr() | promql.SubqueryExpr():
            return labels_of(node.expr)
        case promql.AggregateExpr():
            return _of_aggregation(node)
        case promql.Call():
            return _of_call(node)
        case promql.BinaryExpr():
            return _of_pair(node)
    raise TypeError(type(node))


def _of_selector(node: promql.VectorSelector) -> set[str]:
    if node.name not in EXPORTED:
        raise WrongQuery(f"nobody exports {node.name}")
    known = EXPORTED[node.name]
    _need({matcher.name for matcher in node.matchers.matchers}, set(known), str(node))
    return set(known)


def _of_aggregation(node: promql.AggregateExpr) -> set[str]:
    inner = labels_of(node.expr) or set()
    if node.modifier is None:
        return set()
    assert node.modifier.type == promql.AggModifierType.By, "without keeps labels that nobody named"
    _need(set(node.modifier.labels), inner, str(node))
    return set(node.modifier.labels)


def _of_call(node: promql.Call) -> set[str] | None:
    arguments = [labels_of(argument) for argument in node.args]
    match node.func.name:
        case "time" | "scalar":
            return None
        case "vector" | "absent":
            return set()
        case "label_replace":
            return (arguments[0] or set()) | {node.args[1].val}
        case "histogram_quantile":
            assert arguments[1] is not None
            _need({"le"}, arguments[1], str(node))
            return arguments[1] - {"le"}
    (vector,) = (found for found in arguments if found is not None)
    return vector


def _of_pair(node: promql.BinaryExpr) -> set[str] | None:
    left, right = labels_of(node.lhs), labels_of(node.rhs)
    if left is None or right is None:
        return right if left is None else left
    if node.modifier is None or node.modifier.matching is None:
        if str(node.op) == "or":
            return left | right
        if left != right:
            raise WrongQuery(f"no series match where one side has {left} and the other {right}: {node}")
        return left
    modifier = node.modifier
    assert modifier.matching.type == promql.LabelModifierType.Include, "ignoring keeps labels that nobody named"
    on = set(modifier.matching.labels)
    _need(on, left, str(node))
    _need(on, right, str(node))
    if str(node.op) in {"or", "and", "unless"}:
        return left | right if str(node.op) == "or" else left
    return left if modifier.card == promql.VectorMatchCardinality.ManyToOne else on


def _need(wanted: set[str], there: set[str], where: str) -> None:
    if not wanted <= there:
        raise WrongQuery(f"no label {sorted(wanted - there)} among {sorted(there)}: {where}")
