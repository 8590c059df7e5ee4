"""Disruption budgets: how many pods of each may be evicted now, for the API server's eviction subresource."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from math import ceil

from trireme_local.controllers.claims import controller_of
from trireme_local.events import now_text
from trireme_local.informer import Informer, key_of
from trireme_local.kube import (
    NETWORK_ERRORS,
    PODDISRUPTIONBUDGETS,
    ApiException,
    JsonObject,
    KubeClient,
    is_status,
)
from trireme_local.quantities import is_finished
from trireme_local.selectors import label_selector_matches

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.2
RETRY_SECONDS = 2.0


def _count(value: int | str, total: int) -> int:
    """An absolute number, or a percentage of `total` rounded up."""
    if isinstance(value, str) and value.endswith("%"):
        return ceil(int(value[:-1]) * total / 100)
    return int(value)


def _is_healthy(pod: JsonObject) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    ready = any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
    return ready and not pod["metadata"].get("deletionTimestamp")


Find = Callable[[str, str, str], JsonObject | None]
"""(kind, namespace, name) -> the ReplicaSet or Deployment of that name."""


def expected_pods(pods: list[JsonObject], find: Find) -> int:
    """How many pods the controllers of `pods` want together.

    A pod counts as itself where it has no controller, or one without a scale that is known here.
    """
    alone, scales = 0, {}
    for pod in pods:
        owner = _controller(pod, find)
        if owner is not None and (above := _controller(owner, find)) is not None:
            owner = above
        if owner is None:
            alone += 1
        else:
            scales[owner["metadata"]["uid"]] = int(owner["spec"].get("replicas", 1))
    return alone + sum(scales.values())


def _controller(obj: JsonObject, find: Find) -> JsonObject | None:
    reference = controller_of(obj)
    if reference is None:
        return None
    owner = find(reference["kind"], obj["metadata"]["namespace"], reference["name"])
    return owner if owner is not None and owner["metadata"]["uid"] == reference["uid"] else None


def budget_status(budget: JsonObject, pods: list[JsonObject], find: Find = lambda *name: None) -> JsonObject:
    """The counts of a budget's status; shares are of the pods that their controllers want.

    Source: getExpectedPodCount of k8s.io/kubernetes/pkg/controller/disruption.
    """
    spec = budget["spec"]
    living = [pod for pod in pods if not is_finished(pod)]
    expected = len(living) if isinstance(spec.get("minAvailable"), int) else expected_pods(living, find)
    healthy = sum(_is_healthy(pod) for pod in living)
    if spec.get("minAvailable") is not None:
        desired = _count(spec["minAvailable"], expected)
    elif spec.get("maxUnavailable") is not None:
        desired = max(0, expected - _count(spec["maxUnavailable"], expected))
    else:
        desired = max(0, expected - 1)
    allowed = max(0, healthy - desired) if expected else 0
    return {
        "currentHealthy": healthy,
        "desiredHealthy": desired,
        "expectedPods": expected,
        "disruptionsAllowed": allowed,
        "observedGeneration": budget["metadata"].get("generation", 1),
    }


class DisruptionBudgets:
    """Keeps the status of every PodDisruptionBudget."""

    def __init__(
        self, client: KubeClient, pods: Informer, budgets: Informer, replica_sets: Informer, deployments: Informer
    ) -> None:
        self._client = client
        self._pods, self._budgets = pods, budgets
        self._scaled = {"ReplicaSet": replica_sets, "Deployment": deployments}
        self._wake = asyncio.Event()
        for informer in (pods, budgets, replica_sets, deployments):
            informer.handlers.append(lambda old, new: self._wake.set())

    async def run(self) -> None:
        """Work until cancelled."""
        await self._pods.synced.wait()
        await self._budgets.synced.wait()
        for informer in self._scaled.values():
            await informer.synced.wait()
        while True:
            self._wake.clear()
            failed = False
            for budget in list(self._budgets.store.values()):
                try:
                    await self._visit(budget)
                except (ApiException, *NETWORK_ERRORS) as error:
                    log.info("budget %s: %r", key_of(budget), error)
                    failed = True
            await asyncio.sleep(RETRY_SECONDS if failed else SETTLE_SECONDS)
            if not failed:
                await self._wake.wait()

    def _find(self, kind: str, namespace: str, name: str) -> JsonObject | None:
        informer = self._scaled.get(kind)
        return informer.store.get((namespace, name)) if informer is not None else None

    async def _visit(self, budget: JsonObject) -> None:
        namespace, name = key_of(budget)
        selector = budget["spec"].get("selector")
        pods = [
            pod
            for (pod_namespace, _), pod in self._pods.store.items()
            if pod_namespace == namespace and label_selector_matches(selector, pod["metadata"].get("labels"))
        ]
        counts = budget_status(budget, pods, self._find)
        known = budget.get("status") or {}
        if all(known.get(key) == value for key, value in counts.items()):
            return
        allowed = counts["disruptionsAllowed"] > 0
        condition = {
            "type": "DisruptionAllowed",
            "status": "True" if allowed else "False",
            "reason": "SufficientPods" if allowed else "InsufficientPods",
            "message": "",
            "lastTransitionTime": now_text(),
            "observedGeneration": counts["observedGeneration"],
        }
        body = {
            "metadata": {"resourceVersion": budget["metadata"]["resourceVersion"]},
            "status": {**counts, "conditions": [condition]},
        }
        try:
            await self._client.patch(PODDISRUPTIONBUDGETS, namespace, name, body, sub="status")
        except ApiException as error:
            # 409: a newer version is on its way here, and wakes this loop.
            if not is_status(error, 404, 409):
                raise
