"""`trireme lineage`: which models a job's model was made of, with their digests."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from trireme.resources import kind_named
from trireme.resources.status import InputStatus
from trireme_cli.cluster import Cluster
from trireme_cli.jobs import Job, find_job, get_job
from trireme_cli.resources import Kubeconfig, Namespace


@dataclass(frozen=True)
class Link:
    """A job of the chain; `depth` is 0 for the one that was asked for."""

    depth: int
    job: str
    uid: str
    state: str
    uri: str
    digest: str


Find = Callable[[InputStatus], Job | None]


def lineage(
    name: Annotated[str, typer.Argument(help="Name of the job.")],
    namespace: Namespace = "default",
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the job and, below it, the jobs whose models it started from. Digests are those that were recorded."""
    cluster = Cluster(kubeconfig)

    def find(known: InputStatus) -> Job | None:
        return get_job(cluster, cluster.find_type(kind_named(known.kind).plural), known.name, namespace)

    table = Table("JOB", "STATE", "UID", "MODEL", "DIGEST", box=None)
    for link in chain(find_job(cluster, name, namespace), find):
        table.add_row("  " * link.depth + link.job, link.state, link.uid, link.uri, link.digest)
    # Digests are compared and copied: a table as wide as it is, whatever the terminal's width.
    Console(width=1000, soft_wrap=True).print(table)


def chain(job: Job, find: Find) -> Iterator[Link]:
    """The job, then each job that it started from with what that one started from.

    A job that was deleted since, or created anew under its name, is told as it was recorded, and ends its branch.
    """
    model = job.status.model
    label = f"{job.type.kind}/{job.name}"
    yield Link(0, label, job.uid, job.status.state.value, *((model.uri, model.digest) if model else ("", "")))
    yield from _inputs(job, find, 1, {job.uid})


def _inputs(job: Job, find: Find, depth: int, above: set[str]) -> Iterator[Link]:
    for known in job.status.inputs:
        there = find(known)
        same = there is not None and there.uid == known.uid
        state = there.status.state.value if there is not None and same else "Deleted"
        yield Link(depth, f"{known.kind}/{known.name}", known.uid, state, known.uri or "", known.digest or "")
        if there is not None and same and known.uid not in above:  # two jobs may wait for each other
            yield from _inputs(there, find, depth + 1, above | {known.uid})
