"""`trireme dashboard`."""

import asyncio
import signal
import webbrowser
from typing import Annotated

import typer

from trireme_cli.cluster import Cluster, ClusterError
from trireme_cli.dashboard.facts import Facts
from trireme_cli.dashboard.server import ADDRESS, listen, serve
from trireme_cli.overview import read_overview
from trireme_cli.resources import Kubeconfig, Namespace
from trireme_cli.top import AllNamespaces

PORT = 8790


def dashboard(
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes a free one.")] = PORT,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    namespace: Namespace = "default",
    all_namespaces: AllNamespaces = False,
    interval: Annotated[float, typer.Option(min=1.0, help="Seconds between two readings of the cluster.")] = 2.0,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Serve a page with live charts of all jobs and services to this computer's browser, until Ctrl-C."""
    cluster = Cluster(kubeconfig)
    where = None if all_namespaces else namespace
    read_overview(cluster, where)  # a cluster that cannot be read is said here and not in the page
    try:
        listener = listen(port)
    except OSError as error:
        raise ClusterError(0, f"port {port} of {ADDRESS} cannot be taken: {error.strerror}; choose another") from error
    url = f"http://{ADDRESS}:{listener.getsockname()[1]}/"
    print(f"{url}   (Ctrl-C ends it)", flush=True)
    if open_browser:
        webbrowser.open(url)

    async def run() -> None:
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        await serve(Facts(cluster, where, interval), listener, stopped)

    asyncio.run(run())
