"""Training jobs: one pass of observe, decide, apply."""

from trireme_operator.apply.executor import Executor
from trireme_operator.decide import Decision, decide
from trireme_operator.observe.queue import JobKey
from trireme_operator.observe.world import World


class JobController:
    """Looks after the jobs of all kinds."""

    def __init__(self, world: World, executor: Executor) -> None:
        self._world = world
        self._executor = executor

    async def reconcile(self, key: JobKey) -> float | None:
        """One pass; returns after how many seconds the next is due, None when only a change can call for one."""
        observed, raw = self._world.observe(key), self._world.raw_job(key)
        if observed is None or raw is None:
            return None
        kind = self._world.kinds[key.kind]
        decision: Decision = decide(observed, kind)
        await self._executor.execute(observed, raw, kind, decision)
        return decision.requeue_seconds
