"""Kopf and the official Python client, synchronous and asynchronous, against the local API server."""

from __future__ import annotations

import asyncio
from typing import Any

import kopf
import kubernetes
import kubernetes.aio
import pytest
from test_custom_resources import BOATS, CRD, boat

from conftest_apiserver import ApiServerProcess, establish


def sync_client(server: ApiServerProcess) -> Any:
    return kubernetes.config.new_client_from_config(str(server.kubeconfig))


def test_the_synchronous_client_creates_lists_watches_and_patches(apiserver: ApiServerProcess) -> None:
    core = kubernetes.client.CoreV1Api(sync_client(apiserver))
    start = core.list_namespaced_config_map("default").metadata.resource_version
    for index in range(3):
        meta = kubernetes.client.V1ObjectMeta(name=f"sync-{index}")
        core.create_namespaced_config_map("default", kubernetes.client.V1ConfigMap(metadata=meta, data={"a": "1"}))
    core.patch_namespaced_config_map("sync-0", "default", {"data": {"a": "2"}})
    core.delete_namespaced_config_map("sync-1", "default")
    watch = kubernetes.watch.Watch()
    stream = watch.stream(core.list_namespaced_config_map, "default", resource_version=start, timeout_seconds=1)
    seen = [(event["type"], event["object"].metadata.name) for event in stream]
    assert seen == [
        ("ADDED", "sync-0"),
        ("ADDED", "sync-1"),
        ("ADDED", "sync-2"),
        ("MODIFIED", "sync-0"),
        ("DELETED", "sync-1"),
    ]


def test_the_dynamic_client_discovers_and_applies(apiserver: ApiServerProcess) -> None:
    dynamic = kubernetes.dynamic.DynamicClient(sync_client(apiserver))
    maps = dynamic.resources.get(api_version="v1", kind="ConfigMap")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "dynamic"}, "data": {"a": "1"}}
    applied = maps.server_side_apply(body=body, namespace="default", field_manager="test")
    assert applied.metadata.managedFields[0].operation == "Apply"


async def test_the_asynchronous_client_reads_and_writes(apiserver: ApiServerProcess) -> None:
    configuration = kubernetes.aio.client.Configuration()
    await kubernetes.aio.config.load_kube_config(str(apiserver.kubeconfig), client_configuration=configuration)
    async with kubernetes.aio.client.ApiClient(configuration) as client:
        core = kubernetes.aio.client.CoreV1Api(client)
        meta = kubernetes.aio.client.V1ObjectMeta(generate_name="aio-")
        created = await core.create_namespaced_secret("default", kubernetes.aio.client.V1Secret(metadata=meta))
        found = await core.read_namespaced_secret(created.metadata.name, "default")
        assert found.metadata.uid == created.metadata.uid
        with pytest.raises(kubernetes.aio.client.ApiException) as caught:
            await core.read_namespaced_secret("none", "default")
        assert caught.value.status == 404


async def test_kopf_lists_watches_and_indexes(apiserver: ApiServerProcess) -> None:
    establish(apiserver, CRD)
    apiserver.request("POST", BOATS, boat("before"))
    registry = kopf.OperatorRegistry()
    seen: asyncio.Queue[tuple[str | None, str]] = asyncio.Queue()
    ready, stop = asyncio.Event(), asyncio.Event()

    @kopf.on.login(registry=registry)
    def login(**_: Any) -> kopf.ConnectionInfo:
        return kopf.ConnectionInfo(
            server=apiserver.url, token=apiserver.token, ca_path=str(apiserver.data_dir / "pki" / "ca.crt")
        )

    @kopf.on.event("example.dev", "v1", "boats", registry=registry)
    def on_boat(event: Any, name: str, **_: Any) -> None:
        seen.put_nowait((event["type"], name))

    @kopf.index("pods", registry=registry)
    def by_node(name: str, **_: Any) -> dict[str, str]:
        return {"all": name}

    operator = asyncio.create_task(
        kopf.operator(registry=registry, clusterwide=True, standalone=True, ready_flag=ready, stop_flag=stop)
    )
    try:
        await asyncio.wait_for(ready.wait(), 45)
        await _expect(seen, (None, "before"))
        await asyncio.to_thread(apiserver.request, "POST", BOATS, boat("after"))
        await _expect(seen, ("ADDED", "after"))
        await asyncio.to_thread(apiserver.request, "DELETE", f"{BOATS}/after")
        await _expect(seen, ("DELETED", "after"))
    finally:
        stop.set()
        await operator


async def _expect(seen: asyncio.Queue[Any], event: tuple[str | None, str]) -> None:
    """Wait for an event, letting others pass."""
    async with asyncio.timeout(45):
        while await seen.get() != event:
            pass
