"""The demo from first to last."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from trireme_cli import install
from trireme_cli.cluster import Cluster
from trireme_cli.demo.plot import plot_losses
from trireme_cli.demo.report import build_report, print_seconds
from trireme_cli.demo.watch import DemoFailed, Watcher
from trireme_cli.resources import read_manifests


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
    seed: Annotated[int | None, typer.Option(help="Of the random fault.")] = None,
    timeout_seconds: Annotated[float, typer.Option("--timeout")] = 900,
) -> None:
    """Train a model on this computer, kill a node in mid-run, and watch the job finish anyway."""
    # A demo that is told to end must take its cluster down as one that ends by itself does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console()
    directory.mkdir(parents=True, exist_ok=True)
    home = directory / "cluster"
    trireme = [sys.executable, "-m", "trireme_cli"]
    subprocess.run([*trireme, "local", "down", "--dir", str(home)], check=False, capture_output=True)
    console.print(f"[bold]1.[/] Starting a Kubernetes with {nodes} nodes and an S3 server in {home}")
    started = subprocess.run([*trireme, "local", "up", "--nodes", str(nodes), "--dir", str(home)], check=False)
    if started.returncode != 0:
        raise typer.Exit(started.returncode)
    operator = None
    try:
        cluster = Cluster(home / "kubeconfig")
        console.print("[bold]2.[/] Installing CRDs and RBAC, starting the operator")
        install.install_into(cluster)
        operator = install.start_operator(cluster, directory / "operator")
        console.print(f"[bold]3.[/] kubectl --kubeconfig {home / 'kubeconfig'} apply -f {manifest}")
        (job,) = [cluster.apply(document, "default") for document in read_manifests(str(manifest))]
        watcher = Watcher(cluster, job["metadata"]["name"], home, console, random.Random(seed), fault=fault)
        finished = watcher.run(timeout_seconds)
        report = build_report(finished, watcher.timeline)
        (directory / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        plot_losses(watcher.timeline, directory / "loss.png")
        print_seconds(console, finished.status)
        console.print(f"Wrote {directory / 'report.json'} and {directory / 'loss.png'}")
    except DemoFailed as error:
        console.print(f"[red]{error}[/]")
        console.print(f"Logs: {directory / 'operator'} and {home}")
        raise typer.Exit(1) from error
    finally:
        if keep:
            console.print(f"Still running; export KUBECONFIG={home / 'kubeconfig'}")
        else:
            if operator is not None:
                install.stop_operator(operator)
            subprocess.run([*trireme, "local", "down", "--dir", str(home)], check=False, capture_output=True)
