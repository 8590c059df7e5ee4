"""Record the conversations: `python tests/contract/apiserver/record.py [--kubeconfig FILE]`.

Without a kubeconfig a fresh local API server answers; with one, the server that it names (use a throw-away one).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import kopf
import kubernetes
import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))  # the script's own folder is there already
import recording

from conftest_apiserver import start_apiserver

INPUTS = Path(__file__).parent / "inputs"
GROUP, VERSION, PLURAL = "contract.example.dev", "v1", "boats"


async def kubectl(url: str, home: Path) -> None:
    """The commands of inputs/kubectl.txt, one a line; a leading `-` expects failure."""
    environment = {**os.environ, "HOME": str(home), "KUBECONFIG": str(home / "kubeconfig")}
    configuration = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}],
        "current-context": "c",
    }
    (home / "kubeconfig").write_text(yaml.safe_dump(configuration))
    for line in (INPUTS / "kubectl.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        fails = line.startswith("-")
        process = await asyncio.create_subprocess_shell(
            f"kubectl {line.lstrip('-')}",
            env=environment,
            cwd=INPUTS,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        print(f"$ kubectl {line}\n{output.decode()}", end="")
        if bool(process.returncode) != fails:
            raise SystemExit(f"kubectl {line} ended with {process.returncode}")


async def python_client(url: str, home: Path) -> None:
    """Typed, custom-object and dynamic calls, and a watch, of the official client."""

    def calls() -> None:
        client = kubernetes.client.ApiClient(kubernetes.client.Configuration(host=url))
        core = kubernetes.client.CoreV1Api(client)
        meta = kubernetes.client.V1ObjectMeta
        core.create_namespace(kubernetes.client.V1Namespace(metadata=meta(name="python")))
        start = core.list_namespaced_config_map("python").metadata.resource_version
        core.create_namespaced_config_map(
            "python", kubernetes.client.V1ConfigMap(metadata=meta(name="one"), data={"a": "1"})
        )
        core.patch_namespaced_config_map("one", "python", {"data": {"a": "2"}})
        found = core.read_namespaced_config_map("one", "python")
        found.data["b"] = "3"
        core.replace_namespaced_config_map("one", "python", found)
        for attempt in (lambda: core.replace_namespaced_config_map("one", "python", found),
                        lambda: core.read_namespaced_config_map("none", "python")):  # fmt: skip
            try:
                attempt()
            except kubernetes.client.ApiException as error:
                print(error.status, error.reason)
        core.delete_namespaced_config_map("one", "python")
        stream = kubernetes.watch.Watch().stream(
            core.list_namespaced_config_map,
            "python",
            resource_version=start,
            timeout_seconds=1,
            allow_watch_bookmarks=False,
        )
        print([event["type"] for event in stream])
        leases = kubernetes.client.CoordinationV1Api(client)
        spec = kubernetes.client.V1LeaseSpec(holder_identity="me", lease_duration_seconds=15)
        lease = leases.create_namespaced_lease("python", kubernetes.client.V1Lease(metadata=meta(name="l"), spec=spec))
        lease.spec.holder_identity = "you"
        leases.replace_namespaced_lease("l", "python", lease)
        custom = kubernetes.client.CustomObjectsApi(client)
        boat = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "Boat", "metadata": {"name": "py"}, "spec": {"oars": 2}}
        path = (GROUP, VERSION, "python", PLURAL)
        custom.create_namespaced_custom_object(*path, boat)
        custom.patch_namespaced_custom_object_status(*path, "py", {"status": {"state": "afloat"}})
        custom.list_namespaced_custom_object(*path, label_selector="a=b")
        dynamic = kubernetes.dynamic.DynamicClient(client)
        boats = dynamic.resources.get(api_version=f"{GROUP}/{VERSION}", kind="Boat")
        boat["spec"]["oars"] = 4
        boats.server_side_apply(body=boat, namespace="python", field_manager="dynamic", force_conflicts=True)
        custom.delete_namespaced_custom_object(*path, "py")

    await asyncio.to_thread(calls)


async def kopf_operator(url: str, home: Path) -> None:
    """An operator that watches a custom resource and pods, while objects come and go."""
    registry = kopf.OperatorRegistry()
    seen: asyncio.Queue[tuple[str | None, str]] = asyncio.Queue()
    ready, stop = asyncio.Event(), asyncio.Event()

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return kopf.ConnectionInfo(server=url)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    def on_boat(event: Any, name: str, **_: Any) -> None:
        seen.put_nowait((event["type"], name))

    @kopf.index("pods", registry=registry)
    def by_name(name: str, **_: Any) -> dict[str, str]:
        return {name: name}

    operator = asyncio.create_task(
        kopf.operator(registry=registry, namespaces=["default"], standalone=True, ready_flag=ready, stop_flag=stop)
    )
    client = kubernetes.client.ApiClient(kubernetes.client.Configuration(host=url))
    custom = kubernetes.client.CustomObjectsApi(client)
    path = (GROUP, VERSION, "default", PLURAL)
    boat = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "Boat", "metadata": {"name": "kopf"}, "spec": {"oars": 2}}
    await asyncio.wait_for(ready.wait(), 30)
    await asyncio.sleep(1)
    for event, call in (
        ("ADDED", lambda: custom.create_namespaced_custom_object(*path, boat)),
        ("MODIFIED", lambda: custom.patch_namespaced_custom_object(*path, "kopf", {"spec": {"oars": 4}})),
        ("DELETED", lambda: custom.delete_namespaced_custom_object(*path, "kopf")),
    ):
        await asyncio.to_thread(call)
        while await asyncio.wait_for(seen.get(), 10) != (event, "kopf"):
            pass
    stop.set()
    await operator


CLIENTS: dict[str, Callable[[str, Path], Awaitable[None]]] = {
    "kubectl": kubectl,
    "python-client": python_client,
    "kopf": kopf_operator,
}


async def record(url: str, ca_path: Path, token: str) -> None:
    """Record every client against one server, one after the other."""
    for name, client in CLIENTS.items():
        proxy = recording.RecordingProxy(url, ca_path, token)
        address = await proxy.start()
        with tempfile.TemporaryDirectory() as home:
            await client(address, Path(home))
        await proxy.stop()
        path = recording.save(name, proxy.exchanges)
        print(f"{path}: {len(recording.load(name))} exchanges, {path.stat().st_size} bytes")


def main() -> None:
    """Record against a fresh local server, or against the one that a kubeconfig names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kubeconfig", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = None
        if arguments.kubeconfig is None:
            server = start_apiserver(Path(folder) / "data")
        content = yaml.safe_load((server.kubeconfig if server else arguments.kubeconfig).read_text())
        cluster, user = content["clusters"][0]["cluster"], content["users"][0]["user"]
        ca_path = Path(folder) / "ca.crt"
        ca_path.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
        try:
            asyncio.run(record(cluster["server"], ca_path, user["token"]))
        finally:
            if server:
                server.stop()


if __name__ == "__main__":
    main()
