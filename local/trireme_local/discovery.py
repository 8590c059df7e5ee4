"""`python -m trireme_local.discovery`: targets of a Prometheus from the pods of an API server, as a file.

Debian's Prometheus is built without the discovery of Kubernetes' pods. This writes the same targets with the same
labels for `file_sd_configs`, so that the rest of a scrape configuration, its relabelling, is what it is on any cluster.
Source of targets and labels: https://prometheus.io/docs/prometheus/latest/configuration/configuration/#pod
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trireme_local.informer import Informer
from trireme_local.kube import PODS, JsonObject, KubeClient, wait_for_kubeconfig
from trireme_local.mainloop import run_until_signalled

log = logging.getLogger("trireme_local.discovery")

META = "__meta_kubernetes_"
SETTLE_SECONDS = 0.2
"""Changes come in numbers: one file for those of this time."""


def targets(pods: Iterable[JsonObject]) -> list[JsonObject]:
    """What `file_sd_configs` takes: a group for each declared port of each pod that has an address.

    A container that declares no port makes one target, the pod's address alone.
    """
    found = sorted(pods, key=lambda pod: (pod["metadata"]["namespace"], pod["metadata"]["name"]))
    return [group for pod in found for group in _groups(pod)]


def _groups(pod: JsonObject) -> Iterator[JsonObject]:
    address = (pod.get("status") or {}).get("podIP") or ""
    if not address:
        return
    host = f"[{address}]" if ":" in address else address
    labels, spec = _pod_labels(pod), pod["spec"]
    for init, containers in (("false", spec.get("containers")), ("true", spec.get("initContainers"))):
        for container in containers or ():
            own = labels | {
                f"{META}pod_container_name": container["name"],
                f"{META}pod_container_image": container.get("image", ""),
                f"{META}pod_container_init": init,
            }
            for port in container.get("ports") or ():
                number = str(port["containerPort"])
                of_port = {
                    f"{META}pod_container_port_number": number,
                    f"{META}pod_container_port_name": port.get("name", ""),
                    f"{META}pod_container_port_protocol": port.get("protocol", "TCP"),
                }
                yield {"targets": [f"{host}:{number}"], "labels": own | of_port}
            if not container.get("ports"):
                yield {"targets": [host], "labels": own}


def _pod_labels(pod: JsonObject) -> dict[str, str]:
    metadata, status = pod["metadata"], pod["status"]
    conditions = {condition["type"]: condition["status"] for condition in status.get("conditions") or ()}
    labels = {
        f"{META}namespace": metadata["namespace"],
        f"{META}pod_name": metadata["name"],
        f"{META}pod_uid": metadata.get("uid", ""),
        f"{META}pod_ip": status["podIP"],
        f"{META}pod_host_ip": status.get("hostIP", ""),
        f"{META}pod_node_name": pod["spec"].get("nodeName", ""),
        f"{META}pod_phase": status.get("phase", ""),
        f"{META}pod_ready": conditions.get("Ready", "unknown").lower(),
    }
    owner = next((o for o in metadata.get("ownerReferences") or () if o.get("controller")), None)
    if owner is not None:
        labels |= {f"{META}pod_controller_kind": owner["kind"], f"{META}pod_controller_name": owner["name"]}
    return labels | _of_map("label", metadata.get("labels")) | _of_map("annotation", metadata.get("annotations"))


def _of_map(kind: str, pairs: Mapping[str, str] | None) -> dict[str, str]:
    """Labels of a pod's labels or annotations: the value, and that there is one."""
    labels: dict[str, str] = {}
    for key, value in (pairs or {}).items():
        name = re.sub(r"[^a-zA-Z0-9_]", "_", key)
        labels |= {f"{META}pod_{kind}_{name}": value, f"{META}pod_{kind}present_{name}": "true"}
    return labels


def write(path: Path, groups: list[JsonObject]) -> None:
    """Replace the file at once: Prometheus never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")  # of a name that Prometheus is not told to read
    fresh.write_text(json.dumps(groups, indent=1))
    fresh.replace(path)


class Discovery:
    """Keeps the file current; while the API server is away it stays as it was."""

    def __init__(self, client: KubeClient, path: Path) -> None:
        self._path = path
        self._pods = Informer(client, PODS)
        self._changed = asyncio.Event()
        self._pods.handlers.append(lambda old, new: self._changed.set())

    async def run(self) -> None:
        """Write until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pods.run())
            group.create_task(self._follow())

    async def _follow(self) -> None:
        await self._pods.synced.wait()
        written: list[JsonObject] | None = None
        while True:
            self._changed.clear()
            found = targets(self._pods.store.values())
            if found != written:
                write(self._path, found)
                written = found
                log.info("%d targets", len(found))
            await self._changed.wait()
            await asyncio.sleep(SETTLE_SECONDS)


async def serve(kubeconfig: Path, path: Path) -> None:
    """Run until a signal comes."""
    client = await KubeClient.from_kubeconfig(kubeconfig, "trireme-local-discovery")
    await run_until_signalled(client, Discovery(client, path).run())


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = argparse.ArgumentParser(prog="trireme-local-discovery", description=__doc__)
    options.add_argument("--kubeconfig", type=Path, required=True)
    options.add_argument("--output", type=Path, required=True, help="File that file_sd_configs names.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    parsed: Any = options.parse_args(arguments)
    wait_for_kubeconfig(parsed.kubeconfig)
    asyncio.run(serve(parsed.kubeconfig, parsed.output))


if __name__ == "__main__":
    main()
