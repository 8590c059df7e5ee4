"""`python -m trireme_local.controllers`: every control loop of the local cluster in one process."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from trireme_local.controllers.disruption import DisruptionBudgets
from trireme_local.controllers.endpoints import EndpointSlices
from trireme_local.controllers.garbage import GarbageCollector
from trireme_local.controllers.namespaces import Namespaces
from trireme_local.controllers.nodelifecycle import NodeLifecycle
from trireme_local.controllers.podgc import PodGarbageCollector
from trireme_local.controllers.scheduler import SCHEDULER_NAME, Scheduler
from trireme_local.events import EventRecorder
from trireme_local.informer import Informer
from trireme_local.kube import (
    CUSTOMRESOURCEDEFINITIONS,
    LEASES,
    NAMESPACES,
    NODES,
    PODDISRUPTIONBUDGETS,
    PODS,
    SERVICES,
    KubeClient,
    wait_for_kubeconfig,
)

log = logging.getLogger("trireme_local.controllers")


async def run_controllers(client: KubeClient, *, grace_seconds: float, default_toleration_seconds: float) -> None:
    """Run every controller until one fails or the task is cancelled."""
    pods, nodes = Informer(client, PODS), Informer(client, NODES)
    leases = Informer(client, LEASES, namespace="kube-node-lease")
    namespaces, services = Informer(client, NAMESPACES), Informer(client, SERVICES)
    budgets = Informer(client, PODDISRUPTIONBUDGETS)
    crds = Informer(client, CUSTOMRESOURCEDEFINITIONS, metadata_only=True)
    scheduling_events = EventRecorder(client, SCHEDULER_NAME)
    node_events = EventRecorder(client, "node-controller")
    lifecycle = NodeLifecycle(
        client,
        pods,
        nodes,
        leases,
        node_events,
        grace_seconds=grace_seconds,
        default_toleration_seconds=default_toleration_seconds,
    )
    loops: list[Coroutine[Any, Any, None]] = [
        scheduling_events.run(),
        node_events.run(),
        Scheduler(client, pods, nodes, scheduling_events).run(),
        lifecycle.run(),
        PodGarbageCollector(client, pods, nodes).run(),
        Namespaces(client, namespaces).run(),
        EndpointSlices(client, pods, services).run(),
        DisruptionBudgets(client, pods, budgets).run(),
        GarbageCollector(client, crds).run(),
        *(informer.run() for informer in (pods, nodes, leases, namespaces, services, budgets, crds)),
    ]
    async with asyncio.TaskGroup() as group:
        for loop in loops:
            group.create_task(loop)


async def serve(options: argparse.Namespace) -> None:
    """Run the controllers until SIGTERM or SIGINT."""
    client = await KubeClient.from_kubeconfig(options.kubeconfig, "trireme-local-controllers")
    task = asyncio.create_task(
        run_controllers(
            client,
            grace_seconds=options.node_monitor_grace_seconds,
            default_toleration_seconds=options.default_toleration_seconds,
        )
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    finally:
        await client.close()


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = argparse.ArgumentParser(prog="trireme-local-controllers", description=__doc__)
    options.add_argument("--kubeconfig", type=Path, required=True)
    options.add_argument("--node-monitor-grace-seconds", type=float, default=8.0)
    options.add_argument("--default-toleration-seconds", type=float, default=300.0)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    parsed = options.parse_args(arguments)
    wait_for_kubeconfig(parsed.kubeconfig)
    asyncio.run(serve(parsed))


if __name__ == "__main__":
    main()
