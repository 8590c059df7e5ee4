"""Services: one pass of observe, decide, apply."""

from trireme_operator.observe.queue import JobKey
from trireme_operator.services.apply import ServiceExecutor
from trireme_operator.services.decide import decide
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
            return None
        observed, raw = found
        decision = decide(observed)
        await self._executor.execute(observed, raw, decision)
        return decision.requeue_seconds
