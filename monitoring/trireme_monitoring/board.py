"""Panels and dashboards, built with Grafana's Foundation SDK; what all of Trireme's have in common is decided here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models

GRID_COLUMNS = 24
TAG = "trireme"
DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
AnyPanel = timeseries.Panel | stat.Panel | table.Panel | bargauge.Panel


@dataclass(frozen=True)
class Query:
    """One query of a panel, and what its series are called."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """A panel that has no place yet."""

    title: str
    builder: AnyPanel
    height: int


def lines(
    title: str,
    about: str,
    unit: str,
    *queries: Query,
    stacked: bool = False,
    top: float | None = None,
    log: bool = False,
) -> Panel:
    """Curves over time; `top`: the highest value that makes sense, `log`: on a logarithmic scale."""
    made = _begin(timeseries.Panel(), title, about, unit, queries)
    made.legend(
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    made.tooltip(
        common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI).sort(common_models.SortOrder.DESCENDING)
    )
    made.show_points(common_models.VisibilityMode.NEVER).line_width(1).fill_opacity(30 if stacked else 0)
    if stacked:
        made.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A")).min(0)
    if top is not None:
        made.min(0).max(top)
    if log:
        made.scale_distribution(common.ScaleDistributionConfig().type(common_models.ScaleDistribution.LOG).log(10))
    return Panel(title, made, 8)


def number(
    title: str, about: str, unit: str, query: Query, *, decimals: int | None = None, bad_from: float | None = None
) -> Panel:
    """The present value, large; red from `bad_from` on."""
    made = _begin(stat.Panel(), title, about, unit, [query], instant=True)
    made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    made.graph_mode(common_models.BigValueGraphMode.NONE)
    made.color_mode(common_models.BigValueColorMode.NONE if bad_from is None else common_models.BigValueColorMode.VALUE)
    if bad_from is not None:
        steps = [models.Threshold(None, "green"), models.Threshold(bad_from, "red")]
        made.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    if decimals is not None:
        made.decimals(decimals)
    return Panel(title, made, 4)


def word(title: str, about: str, query: Query) -> Panel:
    """A label's value, large: of the series that there is."""
    made = _begin(stat.Panel(), title, about, "none", [query], instant=True)
    made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    made.graph_mode(common_models.BigValueGraphMode.NONE).color_mode(common_models.BigValueColorMode.NONE)
    made.text_mode(common_models.BigValueTextMode.NAME)
    return Panel(title, made, 4)


def bars(title: str, about: str, unit: str, *queries: Query) -> Panel:
    """Present values side by side."""
    made = _begin(bargauge.Panel(), title, about, unit, queries, instant=True)
    made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    made.orientation(common_models.VizOrientation.HORIZONTAL)
    made.display_mode(common_models.BarGaugeDisplayMode.BASIC).min(0)
    return Panel(title, made, 8)


@dataclass(frozen=True)
class Column:
    """A column of numbers: one query's values."""

    name: str
    expr: str
    unit: str = "short"
    hidden: bool = False
    """Whether the query is there for its labels alone."""


def rows(title: str, about: str, labels: dict[str, str], *columns: Column, link: str = "", link_on: str = "") -> Panel:
    """A table with a line for each set of labels; `labels`: those that are shown, and their headings.

    The column `link_on` leads to `link`.
    """
    queries = [Query(column.expr, column.name) for column in columns]
    made = _begin(table.Panel(), title, about, "short", queries, instant=True)
    values = {f"Value #{_ref(n)}" if len(columns) > 1 else "Value": column.name for n, column in enumerate(columns)}
    made.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    order = {name: n for n, name in enumerate([*labels, *values])}
    hidden = {value: True for value, column in zip(values, columns, strict=True) if column.hidden}
    organised = {"excludeByName": {"Time": True, **hidden}, "indexByName": order, "renameByName": {**labels, **values}}
    made.with_transformation(models.DataTransformerConfig(id_val="organize", options=organised))
    for column in (column for column in columns if not column.hidden):
        made.override_by_name(column.name, [models.DynamicConfigValue("unit", column.unit)])
    if link:
        target = {"title": "Open", "url": link}
        made.override_by_name(link_on, [models.DynamicConfigValue("links", [target])])
    return Panel(title, made, 9)


def _begin(made: Any, title: str, about: str, unit: str, queries: Any, *, instant: bool = False) -> Any:
    """What all panels have; the SDK's builders share their methods and no class."""
    made.title(title).description(about).datasource(DATASOURCE).unit(unit)
    for n, query in enumerate(queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(_ref(n))
        if instant:
            target.instant()
        else:
            target.range()
        if isinstance(made, table.Panel):
            target.format(prometheus_models.PromQueryFormat.TABLE)
        made.with_target(target)
    return made


def _ref(n: int) -> str:
    return chr(ord("A") + n)


class _PrometheusAnnotations(models.AnnotationQuery):
    """Marks that a query of Prometheus makes, with the fields that the SDK's model of annotations lacks."""

    def __init__(self, name: str, color: str, query: Query, step: str, enabled: bool) -> None:
        super().__init__(name=name, datasource=DATASOURCE, enable=enabled, icon_color=color, expr=query.expr)
        self._more = {"titleFormat": query.legend, "textFormat": "", "tagKeys": "", "step": step}

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), **self._more}


@dataclass(frozen=True)
class Marks(Builder[models.AnnotationQuery]):
    """Vertical marks on all curves, one wherever the query's value is not 0; `step`: how far apart it is looked at."""

    name: str
    color: str
    query: Query
    step: str = "60s"
    enabled: bool = True

    def build(self) -> models.AnnotationQuery:
        """For the SDK."""
        return _PrometheusAnnotations(self.name, self.color, self.query, self.step, self.enabled)


@dataclass(frozen=True)
class Variable:
    """A choice at the top of a dashboard: the values of a label."""

    name: str
    label: str
    of: str
    """Selector of the series."""
    value: str
    """The label."""
    many: bool = True
    """Whether several may be chosen, and all are at first."""
    any_value: bool = True
    """Whether all means any value whatever, also of labels that a series lacks; else those that are offered."""
    regex: str = ""
    """What part of a value is taken."""


@dataclass
class Board:
    """A dashboard in the making."""

    name: str
    title: str
    about: str
    variables: list[Variable]
    marks: list[Marks] = field(default_factory=list)
    since: str = "now-3h"
    _rows: list[tuple[str, int, tuple[Panel, ...]]] = field(default_factory=list)

    @property
    def uid(self) -> str:
        """By which links find it."""
        return f"trireme-{self.name}"

    def row(self, title: str, *panels: Panel, across: int = 3) -> Board:
        """A titled row; `across`: panels side by side."""
        self._rows.append((title, across, panels))
        return self

    def to_json(self) -> str:
        """As Grafana reads it."""
        made = dashboard.Dashboard(self.title).uid(self.uid).description(self.about).tags([TAG]).editable()
        made.time(self.since, "now").refresh("30s").timezone("browser").tooltip(models.DashboardCursorSync.CROSSHAIR)
        others = dashboard.DashboardLink("Trireme").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
        made.link(others.as_dropdown(True).include_vars(True).keep_time(True))
        made.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        for variable in self.variables:
            made.with_variable(_query_variable(variable))
        for marks in self.marks:
            made.annotation(marks)
        self._place(made)
        return json.dumps(made.build(), cls=JSONEncoder, sort_keys=True, indent=2) + "\n"

    def _place(self, made: dashboard.Dashboard) -> None:
        """Every row and panel at its place on the grid of 24 columns, numbered from 1."""
        number, y = 0, 0
        for title, across, panels in self._rows:
            number += 1
            made.with_row(dashboard.Row(title).id(number).grid_pos(models.GridPos(x=0, y=y, w=GRID_COLUMNS, h=1)))
            y += 1
            width = GRID_COLUMNS // across
            for first in range(0, len(panels), across):
                line = panels[first : first + across]
                height = max(panel.height for panel in line)
                for n, panel in enumerate(line):
                    number += 1
                    place = models.GridPos(x=n * width, y=y, w=width, h=height)
                    made.with_panel(panel.builder.id(number).grid_pos(place))
                y += height


def _query_variable(variable: Variable) -> dashboard.QueryVariable:
    made = dashboard.QueryVariable(variable.name).label(variable.label).datasource(DATASOURCE)
    made.query(f"label_values({variable.of}, {variable.value})")
    made.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    if variable.regex:
        made.regex(variable.regex)
    if variable.many:
        made.multi(True).include_all(True)
        if variable.any_value:
            made.all_value(".*")
        made.current(models.VariableOption(text="All", value="$__all", selected=True))
    return made
