"""`trireme logs`: what a rank printed, from its pod while it lives and from the object store afterwards."""

import re
import sys
from collections.abc import Iterable, Iterator
from typing import Annotated

import typer

from trireme_cli.cluster import Cluster, ClusterError
from trireme_cli.jobs import Job, find_job
from trireme_cli.resources import Kubeconfig, Namespace
from trireme_cli.store import StoreError, open_store

RANK_PREFIX = re.compile(r"^\[rank (\d+)\] ?")


def logs(
    name: Annotated[str, typer.Argument(help="Name of the job.")],
    rank: Annotated[int | None, typer.Option(help="Only this rank.")] = None,
    slot: Annotated[int | None, typer.Option(help="Only this slot's pod.")] = None,
    previous: Annotated[bool, typer.Option("--previous", "-p", help="Of the attempt before the current one.")] = False,
    attempt: Annotated[int | None, typer.Option(help="Of this attempt, from the object store.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f")] = False,
    tail: Annotated[int | None, typer.Option(help="Last lines only.")] = None,
    namespace: Namespace = "default",
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the logs of a job's ranks, also after their pods are gone."""
    cluster = Cluster(kubeconfig)
    job = find_job(cluster, name, namespace)
    status = job.status
    if status.resolved is None:
        raise ClusterError(409, f"{name} has not been accepted; it has no ranks")
    per_slot = status.resolved.ranks_per_slot
    world = per_slot * status.resolved.slots
    if rank is not None and not 0 <= rank < world:
        raise typer.BadParameter(f"rank {rank} is not in 0..{world - 1}")
    wanted = [rank] if rank is not None else [r for r in range(world) if slot is None or r // per_slot == slot]
    if previous or attempt is not None:
        number = attempt if attempt is not None else status.gang.attempt - 1
        if number < 1:
            raise ClusterError(404, f"{name} has had no attempt before attempt {status.gang.attempt}", "NotFound")
        _print_stored(cluster, job, number, wanted, tail)
        return
    slots = sorted({r // per_slot for r in wanted})
    for index in slots:
        ranks = [r for r in wanted if r // per_slot == index]
        try:
            _print_pod(cluster, job, index, ranks if rank is not None else None, follow, tail)
        except ClusterError as error:
            if error.status not in (404, 500, 502, 503, 504):
                raise
            _print_stored(cluster, job, status.gang.attempt, ranks, tail)


def _print_pod(cluster: Cluster, job: Job, slot: int, ranks: list[int] | None, follow: bool, tail: int | None) -> None:
    query = {"follow": "true"} if follow else {}
    response = cluster.open(
        "GET",
        f"/api/v1/namespaces/{job.namespace}/pods/{job.name}-{slot}/log",
        query=query,
        accept="*/*",
        timeout_seconds=None if follow else 60,
    )
    lines = (line.decode(errors="replace").rstrip("\n") for line in response)
    _print(_of_ranks(lines, ranks), None if follow else tail)


def _of_ranks(lines: Iterable[str], ranks: list[int] | None) -> Iterator[str]:
    for line in lines:
        match = RANK_PREFIX.match(line)
        if ranks is None:
            yield line
        elif match and int(match[1]) in ranks:
            yield line[match.end() :]


def _print_stored(cluster: Cluster, job: Job, attempt: int, ranks: list[int], tail: int | None) -> None:
    store = open_store(cluster, job)
    missing = []
    for rank in ranks:
        try:
            text = store.read(store.keys.log(attempt, rank)).decode(errors="replace")
        except StoreError as error:
            missing.append(str(error))
            continue
        prefix = f"[rank {rank}] " if len(ranks) > 1 else ""
        _print((prefix + line for line in text.splitlines()), tail)
    if missing:
        print(f"error: no stored log: {'; '.join(missing)}", file=sys.stderr)
        raise typer.Exit(1)


def _print(lines: Iterable[str], tail: int | None) -> None:
    for line in lines if tail is None else list(lines)[-tail:]:
        print(line)
