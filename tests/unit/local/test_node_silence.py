"""When a silent node is called lost, and when its silence proves nothing."""

import time
from typing import Any, cast

import pytest

from trireme_local.controllers.nodelifecycle import NodeLifecycle
from trireme_local.events import EventRecorder
from trireme_local.informer import Informer
from trireme_local.kube import LEASES, NODES, PODS, JsonObject, KubeClient, Resource

GRACE_SECONDS = 8.0


class RecordingClient:
    """Takes patches as they come."""

    def __init__(self) -> None:
        self.patches: list[tuple[str, str | None, JsonObject]] = []
        self.error: Exception | None = None

    async def patch(
        self, resource: Resource, namespace: str | None, name: str, body: JsonObject, **options: Any
    ) -> JsonObject:
        if self.error is not None:
            raise self.error
        self.patches.append((name, options.get("sub"), body))
        conditions = body.get("status", {}).get("conditions", [])
        return {"metadata": {"name": name, "resourceVersion": "2"}, "spec": {}, "status": {"conditions": conditions}}


class Lifecycle:
    """The controller over hand-filled caches."""

    def __init__(self) -> None:
        self.client = RecordingClient()
        client = cast(KubeClient, self.client)
        self.informers = {resource: Informer(client, resource) for resource in (PODS, NODES, LEASES)}
        for informer in self.informers.values():
            informer.connected = True
        self.controller = NodeLifecycle(
            client,
            self.informers[PODS],
            self.informers[NODES],
            self.informers[LEASES],
            EventRecorder(client, "test"),
            grace_seconds=GRACE_SECONDS,
            default_toleration_seconds=300,
        )
        self.informers[NODES].store[("", "n")] = {
            "metadata": {"name": "n", "resourceVersion": "1"},
            "status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": "t"}]},
        }
        self.now = time.monotonic()
        self.renew("0")

    def renew(self, renewed: str) -> None:
        self.informers[LEASES].store[("kube-node-lease", "n")] = {"spec": {"renewTime": renewed}}

    async def visit(self, later_seconds: float = 0.0) -> bool:
        """Look at the node; True when it was declared Unknown."""
        self.now += later_seconds
        before = len(self.client.patches)
        await self.controller._visit(self.informers[NODES].store[("", "n")], self.now)
        return any(sub == "status" for _, sub, _ in self.client.patches[before:])


@pytest.fixture
def lifecycle() -> Lifecycle:
    return Lifecycle()


async def test_a_node_is_lost_only_after_the_grace(lifecycle: Lifecycle) -> None:
    assert not await lifecycle.visit()
    assert not await lifecycle.visit(GRACE_SECONDS - 1)
    lifecycle.renew("1")
    assert not await lifecycle.visit(2)
    assert not await lifecycle.visit(GRACE_SECONDS - 1)
    assert await lifecycle.visit(2)
    (_, _, status), (_, _, taints) = lifecycle.client.patches
    assert {item["status"] for item in status["status"]["conditions"]} == {"Unknown"}
    assert [item["effect"] for item in taints["spec"]["taints"]] == ["NoSchedule", "NoExecute"]


async def test_silence_proves_nothing_while_the_api_server_is_away(lifecycle: Lifecycle) -> None:
    await lifecycle.visit()
    lifecycle.informers[LEASES].connected = False
    assert not await lifecycle.visit(GRACE_SECONDS + 1)
    lifecycle.informers[LEASES].connected = True
    assert await lifecycle.visit()


async def test_time_in_which_the_controller_did_not_run_is_not_counted(
    lifecycle: Lifecycle, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lifecycle.visit()
    monkeypatch.setattr(time, "monotonic", lambda: lifecycle.now + 60)
    lifecycle.controller._excuse(60)
    assert not await lifecycle.visit(60 + GRACE_SECONDS - 1)
    assert await lifecycle.visit(2)
