"""The `trireme` command."""

import sys

import typer
from urllib3.exceptions import HTTPError

from trireme_cli import dashboard, demo, history, install, lineage, local, logs, resources, samples, top
from trireme_cli.cluster import ClusterError
from trireme_cli.resources import ManifestError

app = typer.Typer(
    help="Trireme: pretrain, fine-tune, align and serve language models on Kubernetes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(local.app, name="local", help="A small Kubernetes on this computer.")
app.command()(resources.apply)
app.command()(resources.get)
app.command()(resources.describe)
app.command()(resources.delete)
app.command()(logs.logs)
app.command()(history.history)
app.command()(samples.samples)
app.command()(lineage.lineage)
app.command()(top.top)
app.command()(dashboard.dashboard)
app.command()(install.install)
app.command("operator")(install.run_operator)
app.command()(demo.demo)


def main() -> None:
    """Run the command line; errors of the cluster and of manifests are one line, not a traceback."""
    try:
        app()
    except (ClusterError, ManifestError, HTTPError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
