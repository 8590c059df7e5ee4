"""Services: one pass of observe, decide, apply, and what is told of them as metrics."""

from trireme.resources.inference_status import ServiceState
from trireme_operator import metrics
from trireme_operator.observe.queue import JobKey
from trireme_operator.services.apply import ServiceExecutor
from trireme_operator.services.decide import decide
from trireme_operator.services.model import ServiceView
from trireme_operator.services.observe import ServiceWorld


class ServiceController:
    """Looks after InferenceServices."""

    def __init__(self, world: ServiceWorld, executor: ServiceExecutor) -> None:
        self._world = world
        self._executor = executor

    async def reconcile(self, key: JobKey) -> float | None:
        """One pass; returns after how many seconds the next is due, None when only a change can call for one."""
        found = self._world.observe(key)
        if found is None:
            forget(key)
            return None
        observed, raw = found
        decision = decide(observed)
        publish(observed.service)
        await self._executor.execute(observed, raw, decision)
        return decision.requeue_seconds


def publish(service: ServiceView) -> None:
    """A service's state as metrics."""
    labels = (service.namespace, service.name)
    for state in ServiceState:
        metrics.SERVICE_STATE.labels(*labels, state.value).set(1.0 if state == service.status.state else 0.0)
    metrics.SERVICE_READY_REPLICAS.labels(*labels).set(service.status.ready_replicas)


def forget(key: JobKey) -> None:
    """Remove the metrics of a service that is gone."""
    labels = {"namespace": key.namespace, "name": key.name}
    metrics.SERVICE_STATE.remove_by_labels(labels)
    metrics.SERVICE_READY_REPLICAS.remove_by_labels(labels)
