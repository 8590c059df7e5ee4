"""`trireme history`: every step that a job completed, from the object store."""

import csv
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from trireme.checkpoints.history import StepRecord, newest_attempt_wins, parse_history
from trireme_cli.cluster import Cluster, ClusterError
from trireme_cli.jobs import find_job
from trireme_cli.resources import Kubeconfig, Namespace
from trireme_cli.store import JobStore, StoreError, open_store


def history(
    name: Annotated[str, typer.Argument(help="Name of the job.")],
    attempt: Annotated[int | None, typer.Option(help="Of this attempt only.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Also steps that a newer attempt computed again.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
    namespace: Namespace = "default",
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print a line for every completed step; the store has them at most half a minute late."""
    cluster = Cluster(kubeconfig)
    try:
        records = read_history(open_store(cluster, find_job(cluster, name, namespace)))
    except StoreError as error:
        raise ClusterError(502, str(error)) from error
    if attempt is not None:
        records = [r for r in records if r.attempt == attempt]
    elif not every:
        records = newest_attempt_wins(records)
    if not records:
        raise ClusterError(404, f"the store holds no step of {name} yet", "NotFound")
    if as_csv:
        write_csv(records)
    else:
        _print_table(records)


def read_history(store: JobStore) -> list[StepRecord]:
    """All stored records of a job, by attempt and step. Raises StoreError."""
    records = [r for key in store.list_keys(store.keys.histories) for r in parse_history(store.read(key))]
    return sorted(records, key=lambda r: (r.attempt, r.step))


def write_csv(records: list[StepRecord]) -> None:
    """Write the records to standard output under their wire names."""
    names = [field.alias or name for name, field in StepRecord.model_fields.items()]
    writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(r.model_dump(mode="json", by_alias=True) for r in records)


def _print_table(records: list[StepRecord]) -> None:
    table = Table("STEP", "ATTEMPT", "LOSS", "LEARNING-RATE", "GRAD-NORM", "SECONDS", "TOKENS", "COMPLETED", box=None)
    for r in records:
        cells = (_number(r.loss, ".4f"), _number(r.learning_rate, ".4g"), _number(r.grad_norm, ".4f"))
        completed = r.completed_at.isoformat(timespec="milliseconds")
        table.add_row(str(r.step), str(r.attempt), *cells, f"{r.seconds:.3f}", str(r.tokens), completed)
    Console(soft_wrap=True).print(table)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
