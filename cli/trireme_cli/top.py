"""`trireme top`: all jobs and services of a cluster in one table, live."""

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text
from urllib3.exceptions import HTTPError

from trireme_cli.cluster import Cluster, ClusterError
from trireme_cli.overview import Overview, Row, read_overview, rows
from trireme_cli.resources import Kubeconfig, Namespace

PIPE_WIDTH = 200
GAP = 2
"""Blanks between columns."""
STYLES = {
    "Running": "green",
    "Ready": "green",
    "Succeeded": "dim green",
    "Failed": "bold red",
    "Rejected": "bold red",
    "Degraded": "red",
    "Restarting": "yellow",
    "Updating": "yellow",
    "Suspending": "dim",
    "Suspended": "dim",
    "Stopped": "dim",
}
"""Of states; any other is one of waiting or starting."""
WAITING_STYLE = "cyan"

AllNamespaces = Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of all namespaces.")]


def top(
    namespace: Namespace = "default",
    all_namespaces: AllNamespaces = False,
    interval: Annotated[float, typer.Option(min=1.0, help="Seconds between two readings.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="One table and no more, as into a pipe.")] = False,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show all jobs and services with step, loss, speed, goodput and restarts, live; q or Ctrl-C ends it."""
    cluster = Cluster(kubeconfig)
    where = None if all_namespaces else namespace
    console = Console()
    if once or not console.is_terminal:
        now = datetime.now(UTC)
        wide = Console(width=console.width if console.is_terminal else PIPE_WIDTH)
        wide.print(render(read_overview(cluster, where), where, now, wide.width))
        return
    _watch(cluster, where, interval, console)


def _watch(cluster: Cluster, namespace: str | None, interval: float, console: Console) -> None:
    """Read and draw until the user has enough. A cluster that does not answer for a while ends nothing."""
    overview, problem = read_overview(cluster, namespace), ""
    with _single_keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                shown = render(overview, namespace, datetime.now(UTC), console.width)
                parts = [shown, *([Text(problem, style="red")] if problem else [])]
                parts.append(Text(f"every {interval:g} s   q quits", style="dim"))
                live.update(Group(*parts), refresh=True)
                if _quits(keys, interval):
                    return
                try:
                    overview, problem = read_overview(cluster, namespace), ""
                except (ClusterError, HTTPError) as error:
                    problem = f"not read since: {' '.join(str(error).split())}"
        except KeyboardInterrupt:
            return


@contextmanager
def _single_keys() -> Iterator[int | None]:
    """The descriptor of a terminal that hands over each key as it is pressed; None where standard input is none."""
    if not sys.stdin.isatty():
        yield None
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _quits(keys: int | None, seconds: float) -> bool:
    """Wait for some seconds; True at once when q was pressed."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if keys is None:
            time.sleep(left)
        elif select.select([keys], [], [], left)[0]:
            pressed = os.read(keys, 64)
            if not pressed:  # the terminal is gone
                return True
            if pressed.lower().startswith(b"q"):
                return True
    return False


@dataclass(frozen=True)
class Column:
    """One column of the table."""

    name: str
    cell: Callable[[Row, datetime], str | Text]
    right: bool = True
    rank: int = 0
    """On a terminal that is too narrow for all, columns of the highest rank go first; those of rank 0 stay."""


def render(overview: Overview, namespace: str | None, now: datetime, width: int) -> RenderableType:
    """The table, and under it what could not be read."""
    found = rows(overview.entries, now)
    place = "all namespaces" if namespace is None else f"namespace {namespace}"
    title = Text.assemble(("trireme top", "bold"), f"  {place}  {now.astimezone():%H:%M:%S}  {summary(found)}")
    title.truncate(width, overflow="ellipsis")
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    columns = [column for column in COLUMNS if namespace is None or column.name != "NAMESPACE"]
    cells = _fit({column: [_text(column.cell(row, now)) for row in found] for column in columns}, width)
    for column in cells:
        table.add_column(column.name, justify="right" if column.right else "left", no_wrap=True)
    for line in zip(*cells.values(), strict=True):
        table.add_row(*line)
    empty = [] if found else [Text(f"No jobs and no services in {place}.", style="dim")]
    problems = [Text(problem, style="yellow") for problem in overview.problems]
    return Group(title, table, *empty, *problems)


def _text(cell: str | Text) -> Text:
    """As it is: a name is no markup."""
    return cell if isinstance(cell, Text) else Text(cell)


def _fit(cells: dict[Column, list[Text]], width: int) -> dict[Column, list[Text]]:
    """Without the columns of the highest ranks, as far as the width asks for it."""
    needed = {
        column: max([len(column.name), *(text.cell_len for text in texts)]) + 2 for column, texts in cells.items()
    }
    kept = dict(cells)
    for column in sorted((c for c in cells if c.rank), key=lambda c: -c.rank):
        if sum(needed[c] for c in kept) - GAP <= width:
            break
        del kept[column]
    return kept


def summary(found: list[Row]) -> str:
    """One line about all rows."""
    running = sum(row.state == "Running" for row in found)
    ready = sum(row.ready or 0 for row in found)
    devices = sum(row.devices or 0 for row in found if row.holds_devices)
    speed = sum(row.tokens_per_second or 0.0 for row in found)
    return f"{running} running, {ready} replicas ready, {devices} devices held, {compact(speed)} tokens/s"


def compact(value: float | None) -> str:
    """A number in at most six characters: 950, 12.3k, 4.56M."""
    if value is None:
        return ""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """Two units at most, as kubectl prints ages: 45s, 3m20s, 5h12m, 4d3h."""
    whole = max(0, int(seconds))
    parts = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
    for (size, unit), (smaller, below) in pairwise(parts):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size}{unit}" + (f"{rest}{below}" if rest else "")
    return f"{whole}s"


def _since(at: datetime | None, now: datetime) -> str:
    return duration((now - at).total_seconds()) if at is not None else ""


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _progress(row: Row) -> str:
    if row.replicas is not None:
        return f"{row.ready}/{row.replicas} ready"
    return "" if row.step is None else f"{row.step}/{row.total_steps or '?'}"


def _state(row: Row) -> Text:
    return Text(row.state, style=STYLES.get(row.state, WAITING_STYLE))


COLUMNS = (
    Column("KIND", lambda row, now: row.short_name, right=False, rank=1),
    Column("NAMESPACE", lambda row, now: row.namespace, right=False),
    Column("NAME", lambda row, now: Text(row.name, style="bold"), right=False),
    Column("STATE", lambda row, now: _state(row), right=False),
    Column("STEP", lambda row, now: _progress(row)),
    Column("LOSS", lambda row, now: "" if row.loss is None else f"{row.loss:.4g}"),
    Column("TOKENS/S", lambda row, now: compact(row.tokens_per_second), rank=3),
    Column("MFU", lambda row, now: _percent(row.mfu), rank=5),
    Column("GOODPUT", lambda row, now: _percent(row.goodput), rank=4),
    Column("RESTARTS", lambda row, now: "" if row.restarts is None else str(row.restarts), rank=2),
    Column("CKPT-AGE", lambda row, now: _since(row.checkpoint_at, now), rank=6),
    Column("DEVICES", lambda row, now: "" if row.devices is None else str(row.devices), rank=8),
    Column("AGE", lambda row, now: _since(row.created_at, now), rank=7),
)
