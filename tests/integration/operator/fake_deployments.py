"""Deployments without their controllers: pods come and go at once, and are ready as soon as they have a node."""

import asyncio
from typing import Any

from fake_gang import FakeNodes

Json = dict[str, Any]
NAMESPACE = "default"
DEPLOYMENTS = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
BUDGETS = f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
MARK = "deployment"


class FakeDeployments:
    """What the Deployment controller does, over an API server's plain HTTP interface."""

    def __init__(self, nodes: FakeNodes) -> None:
        self._call = nodes.call

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._pass()
            await asyncio.sleep(0.1)

    async def _pass(self) -> None:
        deployments = (await self._call("GET", DEPLOYMENTS)).get("items") or []
        wanted = {f"{d['metadata']['name']}-{i}": d for d in deployments for i in range(d["spec"]["replicas"])}
        pods = (await self._call("GET", PODS)).get("items") or []
        mine = {p["metadata"]["name"] for p in pods if MARK in (p["metadata"].get("annotations") or {})}
        for name in mine - set(wanted):
            await self._call("DELETE", f"{PODS}/{name}", {"gracePeriodSeconds": 0})
        for name in set(wanted) - mine:
            template = wanted[name]["spec"]["template"]
            annotations = {**(template["metadata"].get("annotations") or {}), MARK: wanted[name]["metadata"]["name"]}
            metadata = {**template["metadata"], "name": name, "annotations": annotations}
            await self._call("POST", PODS, {"kind": "Pod", "metadata": metadata, "spec": template["spec"]})
