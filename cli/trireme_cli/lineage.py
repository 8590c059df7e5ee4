"""`trireme lineage`: which models a job's model was made of, or a service's is, with their digests."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from trireme.resources import kind_named
from trireme.resources.status import InputStatus, StatusModel
from trireme_cli.cluster import Cluster
from trireme_cli.jobs import Resource, find_resource, get_resource
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


class LinkModel(StatusModel):
    """A model as the status of any kind names it; a service that has just begun may not know its digest."""

    uri: str
    digest: str | None = None


class LinkStatus(StatusModel):
    """What the status of every kind tells of models."""

    state: str = "Pending"
    model: LinkModel | None = None
    inputs: tuple[InputStatus, ...] = ()


Find = Callable[[InputStatus], Resource | None]


def _status(resource: Resource) -> LinkStatus:
    return LinkStatus.model_validate(resource.raw.get("status") or {})


def lineage(
    name: Annotated[str, typer.Argument(help="Name of the job or service.")],
    namespace: Namespace = "default",
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the job or service and, below it, the jobs whose models it works on, with digests as recorded."""
    cluster = Cluster(kubeconfig)

    def find(known: InputStatus) -> Resource | None:
        return get_resource(cluster, cluster.find_type(kind_named(known.kind).plural), known.name, namespace)

    table = Table("JOB", "STATE", "UID", "MODEL", "DIGEST", box=None)
    for link in chain(find_resource(cluster, name, namespace), find):
        table.add_row("  " * link.depth + link.job, link.state, link.uid, link.uri, link.digest)
    # Digests are compared and copied: a table as wide as it is, whatever the terminal's width.
    Console(width=1000, soft_wrap=True).print(table)


def chain(job: Resource, find: Find) -> Iterator[Link]:
    """The job, then each job that it started from with what that one started from.

    A job that was deleted since, or created anew under its name, is told as it was recorded, and ends its branch.
    """
    status = _status(job)
    model = status.model
    label = f"{job.type.kind}/{job.name}"
    yield Link(0, label, job.uid, status.state, *((model.uri, model.digest or "") if model else ("", "")))
    yield from _inputs(job, find, 1, {job.uid})


def _inputs(job: Resource, find: Find, depth: int, above: set[str]) -> Iterator[Link]:
    for known in _status(job).inputs:
        there = find(known)
        same = there is not None and there.uid == known.uid
        state = _status(there).state if there is not None and same else "Deleted"
        yield Link(depth, f"{known.kind}/{known.name}", known.uid, state, known.uri or "", known.digest or "")
        if there is not None and same and known.uid not in above:  # two jobs may wait for each other
            yield from _inputs(there, find, depth + 1, above | {known.uid})
