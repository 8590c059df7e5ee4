"""`trireme local`: a small Kubernetes on this computer."""

import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from trireme_local.cluster import LocalCluster
from trireme_local.errors import ClusterError
from trireme_local.network import NetworksExhausted
from trireme_local.partition import PartitionUnavailable
from trireme_local.s3 import StoreUnavailable

STORE_SECRET = "trireme-store"

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

Directory = Annotated[Path, typer.Option("--dir", help="The cluster's directory.")]
DEFAULT_DIRECTORY = Path(".trireme/local")


class Mode(Enum):
    """How to hurt a node."""

    kill = "kill"
    freeze = "freeze"
    partition = "partition"


def _pairs(text: str | None, option: str) -> dict[str, str] | None:
    if text is None:
        return None
    pairs = {}
    for item in filter(None, text.split(",")):
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"{item!r} is not KEY=VALUE", param_hint=option)
        pairs[key] = value
    return pairs


def _fail(error: Exception) -> typer.Exit:
    print(f"error: {error}", file=sys.stderr)
    return typer.Exit(1)


@app.command()
def up(
    nodes: Annotated[int, typer.Option(help="Number of worker nodes.")] = 3,
    directory: Directory = DEFAULT_DIRECTORY,
    name: Annotated[
        str | None, typer.Option(help="The context's name in the kubeconfig.", show_default="trireme-local")
    ] = None,
    capacity: Annotated[
        str | None,
        typer.Option(
            help="Capacity of each node beside this computer's own, e.g. cpu=4,memory=8Gi,x.dev/gpu=2.",
            show_default="trireme.dev/cpu-rank=4",
        ),
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Labels of each node: key=value,...")] = None,
    images: Annotated[Path | None, typer.Option(help="Image table read before the default one.")] = None,
    grace_seconds: Annotated[
        float | None,
        typer.Option("--node-grace-seconds", help="Silence after which a node is NotReady.", show_default="8.0"),
    ] = None,
    control_plane: Annotated[
        Path | None,
        typer.Option(
            help="Directory with kube-apiserver and etcd (and, where they are, kube-controller-manager and "
            "kube-scheduler) to run in place of the local ones, e.g. $KUBEBUILDER_ASSETS."
        ),
    ] = None,
    isolate: Annotated[
        bool | None,
        typer.Option(
            "--isolate/--no-isolate",
            help="Give the containers of every pod, or of none, file systems of their own by bubblewrap. "
            "--isolate fails where that does not work.",
            show_default="those of pods with a read-only root, where it works",
        ),
    ] = None,
) -> None:
    """Start a cluster: API server, controllers, worker nodes and an S3 server. Does nothing where one runs."""
    cluster = LocalCluster(directory)
    try:
        state = cluster.up(
            nodes=nodes,
            name=name,
            capacity=_pairs(capacity, "--capacity"),
            labels=_pairs(labels, "--labels"),
            grace_seconds=grace_seconds,
            image_table=images,
            control_plane=control_plane,
            isolate=isolate,
        )
        cluster.write_secret(STORE_SECRET, state.store.environment())
    except (ClusterError, NetworksExhausted, StoreUnavailable) as error:
        raise _fail(error) from error
    typer.echo(f"cluster {state.name!r}: {len(state.nodes)} nodes ready, logs in {cluster.logs}")
    typer.echo(f"export KUBECONFIG={cluster.kubeconfig}")
    for key, value in state.store.environment().items():
        typer.echo(f"export {key}={value}")
    typer.echo(f"# bucket s3://{state.store.bucket}; pods find these in Secret {STORE_SECRET} of namespace default")


@app.command()
def status(directory: Directory = DEFAULT_DIRECTORY) -> None:
    """Show every process of the cluster and whether its nodes are Ready."""
    try:
        lines = LocalCluster(directory).status()
    except ClusterError as error:
        raise _fail(error) from error
    table = Table("NAME", "STATUS", box=None, header_style="bold")
    for name, text in lines.items():
        table.add_row(name, text)
    Console(soft_wrap=True).print(table)
    if any("dead" in text for text in lines.values()):
        raise typer.Exit(1)


@app.command()
def down(
    directory: Directory = DEFAULT_DIRECTORY,
    keep: Annotated[bool, typer.Option(help="Keep objects and stored data for the next `up`.")] = False,
) -> None:
    """Stop every process of the cluster and remove its objects and stored data (logs stay)."""
    try:
        LocalCluster(directory).down(keep=keep)
    except ClusterError as error:
        raise _fail(error) from error


@app.command("kill-node")
def kill_node(
    node: Annotated[str, typer.Argument(help="Name of the node.")],
    mode: Annotated[Mode, typer.Option(help="kill: SIGKILL. freeze: SIGSTOP. partition: cut its network.")] = Mode.kill,
    directory: Directory = DEFAULT_DIRECTORY,
) -> None:
    """Hurt a node as a failing machine would; the API server is told nothing."""
    try:
        count = LocalCluster(directory).kill_node(node, mode.value)
    except (ClusterError, PartitionUnavailable) as error:
        raise _fail(error) from error
    typer.echo(f"{node}: {mode.value}, {count} processes")


@app.command("revive-node")
def revive_node(
    node: Annotated[str, typer.Argument(help="Name of the node.")],
    directory: Directory = DEFAULT_DIRECTORY,
) -> None:
    """Thaw, reconnect or restart a node."""
    try:
        done = LocalCluster(directory).revive_node(node)
    except (ClusterError, PartitionUnavailable) as error:
        raise _fail(error) from error
    typer.echo(f"{node}: {done}")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def node(context: typer.Context) -> None:
    """Run one worker node in the foreground, against any API server (see `trireme local node --help`)."""
    os.execv(sys.executable, [sys.executable, "-m", "trireme_local.node", *context.args])
