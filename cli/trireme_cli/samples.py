"""`trireme samples`: what a policy said while it learned, and what it got for it, from the object store."""

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from trireme.checkpoints.samples import SampleRecord, newest_attempt_wins, parse_samples
from trireme_cli.cluster import Cluster, ClusterError
from trireme_cli.jobs import find_job
from trireme_cli.resources import Kubeconfig, Namespace
from trireme_cli.store import JobStore, StoreError, open_store


def samples(
    name: Annotated[str, typer.Argument(help="Name of the job.")],
    step: Annotated[int | None, typer.Option(help="Of this step only.")] = None,
    last: Annotated[int, typer.Option(min=1, help="Of so many of the last steps.")] = 1,
    every: Annotated[bool, typer.Option("--all", help="Of all steps.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines.")] = False,
    namespace: Namespace = "default",
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print completions that a policy learned from, each with its rewards; the store has them half a minute late."""
    cluster = Cluster(kubeconfig)
    try:
        records = read_samples(open_store(cluster, find_job(cluster, name, namespace)))
    except StoreError as error:
        raise ClusterError(502, str(error)) from error
    if step is not None:
        records = [record for record in records if record.step == step]
    elif not every:
        shown = sorted({record.step for record in records})[-last:]
        records = [record for record in records if record.step in shown]
    if not records:
        where = "" if step is None else f" at step {step}"
        raise ClusterError(404, f"the store holds no sample of {name}{where}", "NotFound")
    if as_json:
        for record in records:
            print(record.to_json())
    else:
        _print(records)


def read_samples(store: JobStore) -> list[SampleRecord]:
    """A job's stored samples, of each step those of its newest attempt. Raises StoreError."""
    found = [record for key in store.list_keys(store.keys.all_samples) for record in parse_samples(store.read(key))]
    return newest_attempt_wins(found)


def _print(records: list[SampleRecord]) -> None:
    """Texts are printed as they are: a completion may look like markup."""
    console = Console(soft_wrap=True, highlight=False)
    for record in records:
        parts = ", ".join(f"{name} {value:.4g}" for name, value in record.rewards.items())
        console.print(Text(f"step {record.step}  reward {record.reward:.4g}  ({parts})", style="bold"))
        console.print(Text(record.prompt, style="dim"), Text(record.completion), sep="\n")
        console.print()
