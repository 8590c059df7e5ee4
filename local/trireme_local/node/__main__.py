"""`python -m trireme_local.node`: one worker node in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import os
import signal
import sys
from pathlib import Path

from trireme_local import isolation
from trireme_local.kube import JsonObject, KubeClient, wait_for_kubeconfig
from trireme_local.network import claim_network, node_network, release_network
from trireme_local.node.agent import NodeAgent, NodeSettings
from trireme_local.node.context import PodAddresses, Timings
from trireme_local.node.namespaces import NamespacesUnavailable, choose
from trireme_local.node.registration import default_capacity
from trireme_local.sessions import memory_directory, node_marker, scratch_directory

log = logging.getLogger("trireme_local.node")


def parse_pairs(text: str) -> dict[str, str]:
    """`a=1,b=2` as a dictionary. Raises ValueError."""
    pairs = {}
    for item in filter(None, text.split(",")):
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise argparse.ArgumentTypeError(f"{item!r} is not KEY=VALUE")
        pairs[key.strip()] = value.strip()
    return pairs


def parse_taint(text: str) -> JsonObject:
    """`key=value:Effect` or `key:Effect` as a taint. Raises ValueError."""
    pair, separator, effect = text.rpartition(":")
    if not separator or effect not in ("NoSchedule", "PreferNoSchedule", "NoExecute"):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY[=VALUE]:Effect")
    key, _, value = pair.partition("=")
    return {"key": key, "effect": effect, **({"value": value} if value else {})}


def own_session(gid: int | None) -> None:
    """Make this process the leader of a new session, and give it the node's group id where asked."""
    if os.getsid(0) != os.getpid():
        if os.getpgid(0) == os.getpid():
            # A group leader (a job of a shell) cannot call setsid: its child can.
            child = os.fork()
            if child:
                sys.exit(_forward_signals(child))
        os.setsid()
    if gid is not None:
        os.setgid(gid)
    # Pods do not inherit the node's own priority.
    os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))


def _forward_signals(child: int) -> int:
    """Pass signals on to the child and wait for it; its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: os.kill(child, received))
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(prog="trireme local node", description=__doc__)
    options.add_argument("--kubeconfig", type=Path, required=True)
    options.add_argument("--name", required=True)
    options.add_argument("--dir", type=Path, default=None, help="where pods live (default: .trireme/nodes/NAME)")
    options.add_argument(
        "--loopback",
        type=ipaddress.IPv4Network,
        default=None,
        help="node and pod addresses, e.g. 127.20.1.0/24 (default: a free one)",
    )
    options.add_argument("--labels", type=parse_pairs, default={})
    options.add_argument("--taint", type=parse_taint, action="append", default=[])
    options.add_argument("--capacity", type=parse_pairs, default={}, help="cpu=4,memory=8Gi,example.com/gpu=2")
    options.add_argument("--images", type=Path, default=None, help="image table (YAML), read before the default")
    options.add_argument("--kubelet-port", type=int, default=10250)
    options.add_argument("--lease-duration-seconds", type=int, default=8)
    options.add_argument("--lease-renew-seconds", type=float, default=2.0)
    options.add_argument(
        "--isolation",
        choices=isolation.ISOLATIONS,
        default=isolation.default(),
        help="whose containers get file systems of their own by bubblewrap: auto, those of pods that ask for a "
        f"read-only root, where it works; all; none (default: auto, or what {isolation.VARIABLE} says)",
    )
    options.add_argument("--gid", type=int, default=None, help="group id of every process of the node")
    return options


async def serve(settings: NodeSettings) -> None:
    """Run the node until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    client = await KubeClient.from_kubeconfig(settings.kubeconfig, f"trireme-local-node/{settings.name}")
    try:
        await NodeAgent(settings, client).run(stop)
    finally:
        await client.close()


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = parser().parse_args(arguments)
    own_session(options.gid)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if options.isolation not in isolation.ISOLATIONS:
        wanted = ", ".join(isolation.ISOLATIONS)
        sys.exit(f"error: {isolation.VARIABLE} is {options.isolation!r}: one of {wanted}")
    try:
        namespaces = choose(options.isolation)
    except NamespacesUnavailable as error:
        sys.exit(f"error: --isolation all does not work here: {error}")
    directory = (options.dir or Path(".trireme/nodes") / options.name).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    settings = NodeSettings(
        name=options.name,
        kubeconfig=options.kubeconfig,
        directory=directory,
        scratch=scratch_directory(directory, options.name),
        memory=memory_directory(directory, options.name),
        addresses=PodAddresses(options.loopback or node_network(claim_network(directory), 1)),
        marker=node_marker(directory, options.name),
        capacity={**default_capacity(), **options.capacity},
        labels=options.labels,
        taints=options.taint,
        kubelet_port=options.kubelet_port,
        image_table=options.images,
        namespaces=namespaces,
        isolate_all=options.isolation == "all",
        timings=Timings(
            lease_renew_seconds=options.lease_renew_seconds, lease_duration_seconds=options.lease_duration_seconds
        ),
    )
    wait_for_kubeconfig(options.kubeconfig)
    try:
        asyncio.run(serve(settings))
    finally:
        if options.loopback is None:
            release_network(directory)


if __name__ == "__main__":
    main()
