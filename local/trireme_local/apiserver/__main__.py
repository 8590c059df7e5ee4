"""`python -m trireme_local.apiserver`: run the API server in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import signal
from pathlib import Path

from aiohttp import web

from . import identities, kubeconfig
from .builtins.services import CLUSTER_NETWORK
from .server import ApiServer, is_loopback


async def serve(data_dir: Path, address: str, port: int, service_network: ipaddress.IPv4Network) -> None:
    """Serve until SIGTERM or SIGINT; writes `port` and `admin.kubeconfig` into the data directory once ready."""
    if not is_loopback(address):
        logging.warning("binding %s: this server is meant for loopback addresses", address)
    server = ApiServer(data_dir, address, service_network)
    runner = web.AppRunner(
        server.application(), access_log=None, handler_cancellation=True, shutdown_timeout=1.0, keepalive_timeout=90
    )
    await runner.setup()
    kept = data_dir / "port"
    if port == 0 and kept.exists():
        port = int(kept.read_text())  # a restarted server stays where its kubeconfigs point
    site = web.TCPSite(runner, address, port, ssl_context=server.pki.server_context(), reuse_address=True)
    await site.start()
    bound: int = runner.addresses[0][1]
    url = f"https://{address}:{bound}"
    token = identities.issue(data_dir, identities.ADMIN_USER, [identities.ADMIN_GROUP])
    kubeconfig.write(data_dir / "admin.kubeconfig", server=url, token=token, ca_path=server.pki.ca_path)
    temporary = data_dir / ".port"
    temporary.write_text(str(bound))
    temporary.replace(kept)
    logging.info("serving on %s", url)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    await stop.wait()
    await runner.cleanup()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m trireme_local.apiserver", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="state, certificates and kubeconfigs")
    parser.add_argument("--bind", default="127.0.0.1", help="address to listen on")
    parser.add_argument(
        "--port", type=int, default=0, help="port to listen on; 0 keeps the last one or picks a free one"
    )
    parser.add_argument(
        "--service-cluster-ip-range",
        type=ipaddress.IPv4Network,
        default=CLUSTER_NETWORK,
        help="where the cluster IPs of Services come from (default: %(default)s)",
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(serve(arguments.data_dir, arguments.bind, arguments.port, arguments.service_cluster_ip_range))


if __name__ == "__main__":
    main()
