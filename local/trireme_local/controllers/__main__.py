"""`python -m trireme_local.controllers`: every control loop of the local cluster in one process."""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from trireme_local.controllers.deployments import Deployments
from trireme_local.controllers.disruption import DisruptionBudgets
from trireme_local.controllers.endpoints import EndpointSlices
from trireme_local.controllers.garbage import GarbageCollector
from trireme_local.controllers.namespaces import Namespaces
from trireme_local.controllers.nodelifecycle import NodeLifecycle
from trireme_local.controllers.podgc import PodGarbageCollector
from trireme_local.controllers.replicasets import ReplicaSets
from trireme_local.controllers.scheduler import SCHEDULER_NAME, Scheduler
from trireme_local.events import EventRecorder
from trireme_local.informer import Informer
from trireme_local.kube import (
    CUSTOMRESOURCEDEFINITIONS,
    DEPLOYMENTS,
    LEASES,
    NAMESPACES,
    NODES,
    PODDISRUPTIONBUDGETS,
    PODS,
    REPLICASETS,
    SERVICES,
    KubeClient,
    wait_for_kubeconfig,
)
from trireme_local.mainloop import run_until_signalled

log = logging.getLogger("trireme_local.controllers")

RESTART_SECONDS = 1.0


# What kube-scheduler and kube-controller-manager do here, by the names of the loops below.
REAL_ONES = {
    "scheduler": {"scheduling events", "scheduler"},
    "controller-manager": {
        "node events",
        "endpoint events",
        "replica set events",
        "deployment events",
        "node lifecycle",
        "pod garbage collector",
        "namespaces",
        "endpoint slices",
        "disruption budgets",
        "replica sets",
        "deployments",
        "garbage collector",
    },
}


async def run_controllers(
    client: KubeClient, *, grace_seconds: float, default_toleration_seconds: float, without: Collection[str] = ()
) -> None:
    """Run every controller, but those that a program in `without` stands for, until the task is cancelled."""
    pods, nodes = Informer(client, PODS), Informer(client, NODES)
    leases = Informer(client, LEASES, namespace="kube-node-lease")
    namespaces, services = Informer(client, NAMESPACES), Informer(client, SERVICES)
    budgets = Informer(client, PODDISRUPTIONBUDGETS)
    replica_sets, deployments = Informer(client, REPLICASETS), Informer(client, DEPLOYMENTS)
    crds = Informer(client, CUSTOMRESOURCEDEFINITIONS, metadata_only=True)
    scheduling_events = EventRecorder(client, SCHEDULER_NAME)
    node_events = EventRecorder(client, "node-controller")
    endpoint_events = EventRecorder(client, "endpoint-slice-controller")
    replica_set_events = EventRecorder(client, "replicaset-controller")
    deployment_events = EventRecorder(client, "deployment-controller")
    lifecycle = NodeLifecycle(
        client,
        pods,
        nodes,
        leases,
        node_events,
        grace_seconds=grace_seconds,
        default_toleration_seconds=default_toleration_seconds,
    )
    loops: dict[str, Callable[[], Awaitable[None]]] = {
        "scheduling events": scheduling_events.run,
        "node events": node_events.run,
        "endpoint events": endpoint_events.run,
        "replica set events": replica_set_events.run,
        "deployment events": deployment_events.run,
        "scheduler": Scheduler(client, pods, nodes, scheduling_events).run,
        "node lifecycle": lifecycle.run,
        "pod garbage collector": PodGarbageCollector(client, pods, nodes).run,
        "namespaces": Namespaces(client, namespaces).run,
        "endpoint slices": EndpointSlices(client, pods, services, endpoint_events).run,
        "disruption budgets": DisruptionBudgets(client, pods, budgets, replica_sets, deployments).run,
        "replica sets": ReplicaSets(client, pods, replica_sets, replica_set_events).run,
        "deployments": Deployments(client, pods, replica_sets, deployments, deployment_events).run,
        "garbage collector": GarbageCollector(client, crds).run,
    }
    for name in without:
        for loop in REAL_ONES[name]:
            del loops[loop]
    for informer in (pods, nodes, leases, namespaces, services, budgets, crds, replica_sets, deployments):
        loops[f"informer of {informer.resource.plural}"] = informer.run
    async with asyncio.TaskGroup() as group:
        for name, run in loops.items():
            group.create_task(_supervise(name, run))


async def _supervise(name: str, loop: Callable[[], Awaitable[None]]) -> None:
    """Run the loop for ever: a failure of one controller is logged and stops no other."""
    while True:
        try:
            await loop()
        except Exception:
            log.exception("%s failed, starting again", name)
            await asyncio.sleep(RESTART_SECONDS)


async def serve(options: argparse.Namespace) -> None:
    """Run the controllers until SIGTERM or SIGINT."""
    client = await KubeClient.from_kubeconfig(options.kubeconfig, "trireme-local-controllers")
    work = run_controllers(
        client,
        grace_seconds=options.node_monitor_grace_seconds,
        default_toleration_seconds=options.default_toleration_seconds,
        without=options.without,
    )
    await run_until_signalled(client, work)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = argparse.ArgumentParser(prog="trireme-local-controllers", description=__doc__)
    options.add_argument("--kubeconfig", type=Path, required=True)
    options.add_argument("--node-monitor-grace-seconds", type=float, default=8.0)
    options.add_argument("--default-toleration-seconds", type=float, default=300.0)
    options.add_argument(
        "--without", action="append", choices=sorted(REAL_ONES), default=[], help="leave this program's work to it"
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    parsed = options.parse_args(arguments)
    wait_for_kubeconfig(parsed.kubeconfig)
    asyncio.run(serve(parsed))


if __name__ == "__main__":
    main()
