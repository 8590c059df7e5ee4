"""Disruption budgets: how many pods of each may be evicted now, for the API server's eviction subresource."""

from __future__ import annotations

import asyncio
import logging
from math import ceil

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


def budget_status(budget: JsonObject, pods: list[JsonObject]) -> JsonObject:
    """The counts of a budget's status. The pods that there are stand for the number that is expected:
    no controller with a scale is served here.
    """
    spec = budget["spec"]
    living = [pod for pod in pods if not is_finished(pod)]
    expected = len(living)
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

    def __init__(self, client: KubeClient, pods: Informer, budgets: Informer) -> None:
        self._client = client
        self._pods, self._budgets = pods, budgets
        self._wake = asyncio.Event()
        for informer in (pods, budgets):
            informer.handlers.append(lambda old, new: self._wake.set())

    async def run(self) -> None:
        """Work until cancelled."""
        await self._pods.synced.wait()
        await self._budgets.synced.wait()
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

    async def _visit(self, budget: JsonObject) -> None:
        namespace, name = key_of(budget)
        selector = budget["spec"].get("selector")
        pods = [
            pod
            for (pod_namespace, _), pod in self._pods.store.items()
            if pod_namespace == namespace and label_selector_matches(selector, pod["metadata"].get("labels"))
        ]
        counts = budget_status(budget, pods)
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
