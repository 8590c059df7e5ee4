"""The scheduler's passes over the waiting pods, with an API server that notes what it is asked."""

from types import SimpleNamespace
from typing import Any

from trireme_local.controllers.scheduler import Scheduler
from trireme_local.kube import PODS

Json = dict[str, Any]


class Client:
    """Takes bindings and status patches."""

    def __init__(self) -> None:
        self.bound: dict[str, str] = {}
        self.refused: dict[str, str] = {}

    async def create(self, resource: Any, namespace: str, body: Json, name: str, sub: str) -> Json:
        assert (resource, sub) == (PODS, "binding")
        self.bound[name] = body["target"]["name"]
        return {}

    async def patch(self, resource: Any, namespace: str, name: str, body: Json, **how: Any) -> Json:
        self.refused[name] = body["status"]["conditions"][0]["message"]
        return {}


def _pod(name: str, **spec: Any) -> Json:
    metadata = {"name": name, "namespace": "n", "uid": name, "creationTimestamp": f"2026-01-01T00:00:0{name[-1]}Z"}
    return {"metadata": metadata, "spec": {"containers": [{"name": "c"}], **spec}, "status": {}}


def _scheduler(client: Client, *pods: Json) -> Scheduler:
    node = {
        "metadata": {"name": "node", "labels": {"kubernetes.io/hostname": "node"}},
        "status": {"allocatable": {"cpu": "4", "memory": "4Gi", "pods": "110"}},
    }
    store = {("n", pod["metadata"]["name"]): pod for pod in pods}
    recorder = SimpleNamespace(record=lambda *what: None)
    informers = [SimpleNamespace(store=objects, handlers=[]) for objects in (store, {("", "node"): node})]
    return Scheduler(client, *informers, recorder)  # type: ignore[arg-type]


async def test_a_pod_that_cannot_be_judged_says_so_and_keeps_no_other_waiting() -> None:
    terms = {"requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": {}}]}
    client = Client()
    await _scheduler(client, _pod("odd-1", affinity={"podAntiAffinity": terms}), _pod("plain-2"))._pass()
    assert client.bound == {"plain-2": "node"}
    assert "KeyError('topologyKey')" in client.refused["odd-1"]
