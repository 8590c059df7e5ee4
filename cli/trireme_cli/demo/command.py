"""The demo from first to last."""

import json
import random
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from trireme_cli.demo.installation import Installation
from trireme_cli.demo.plot import plot_losses
from trireme_cli.demo.report import build_report, print_seconds
from trireme_cli.demo.watch import DemoFailed, Watcher
from trireme_cli.resources import read_manifests

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def demo(
    directory: Annotated[Path, typer.Option("--dir", help="Where the cluster, report and picture go.")] = Path(
        ".trireme/demo"
    ),
    manifest: Annotated[Path, typer.Option("--filename", "-f", help="The job to run.")] = Path(
        "examples/pretrain.yaml"
    ),
    nodes: Annotated[int, typer.Option(help="Worker nodes; one more than the job needs.")] = 3,
    fault: Annotated[bool, typer.Option(help="Kill a node in mid-run.")] = True,
    keep: Annotated[bool, typer.Option(help="Leave cluster and operator running afterwards.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Only end what a demo left running.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of the random fault.")] = None,
    timeout_seconds: Annotated[float, typer.Option("--timeout")] = 900,
) -> None:
    """Train a model on this computer, kill a node in mid-run, and watch the job finish anyway."""
    installation = Installation(directory)
    if stop:
        installation.take_down()
        return
    documents = read_manifests(str(manifest))
    if len(documents) != 1:
        raise typer.BadParameter(f"{manifest} has {len(documents)} documents; the demo runs one job")
    directory.mkdir(parents=True, exist_ok=True)
    console = Console()
    installation.take_down()
    _end_by_signals()
    try:
        console.print(f"[bold]1.[/] Starting a Kubernetes with {nodes} nodes and an S3 server in {installation.home}")
        cluster = installation.start_cluster(nodes)
        console.print("[bold]2.[/] Installing CRDs and RBAC, starting the operator")
        installation.start_operator(cluster)
        console.print(f"[bold]3.[/] kubectl --kubeconfig {cluster.kubeconfig} apply -f {manifest}")
        job = cluster.apply(documents[0], "default")
        name = job["metadata"]["name"]
        watcher = Watcher(cluster, name, installation.home, console, random.Random(seed), fault=fault)
        finished = watcher.run(timeout_seconds)
        report = build_report(finished, watcher.timeline)
        (directory / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        plot_losses(watcher.timeline, directory / "loss.png")
        print_seconds(console, finished.status)
        console.print(f"Wrote {directory / 'report.json'} and {directory / 'loss.png'}")
    except DemoFailed as error:
        console.print(f"[red]{error}[/]")
        console.print(f"Logs: {installation.logs} and {installation.home}")
        raise typer.Exit(1) from error
    finally:
        if keep:
            console.print(f"Still running; export KUBECONFIG={installation.home / 'kubeconfig'}")
            console.print(f"To end it: trireme demo --stop --dir {directory}")
        else:
            _end_by_signals(signal.SIG_IGN)  # a second Ctrl-C must not stop the taking down
            installation.take_down()


def _end_by_signals(handler: Any = lambda number, _: sys.exit(128 + number)) -> None:
    """A demo that is told to end, or loses its terminal, takes its cluster down as one that ends by itself does."""
    for number in ENDINGS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
            signal.signal(number, handler)
