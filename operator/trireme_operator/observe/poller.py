"""Polls the agents of active jobs about once a second, concurrently and bounded. Only the leader does."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from trireme_operator.agents import AgentClient
from trireme_operator.observe.queue import JobKey, WorkQueue
from trireme_operator.observe.views import UnreadableStatus
from trireme_operator.observe.world import World

log = logging.getLogger(__name__)

GATHER_SECONDS = 0.05


class Poller:
    """One loop over all active jobs."""

    def __init__(
        self, world: World, agents: AgentClient, queue: WorkQueue, leading: Callable[[], bool], interval_seconds: float
    ) -> None:
        self._world = world
        self._agents = agents
        self._queue = queue
        self._leading = leading
        self._interval = interval_seconds
        self._ticked = time.monotonic()
        self._in_flight: set[str] = set()

    def stalled(self) -> bool:
        """Whether this process itself has not run for a while, so that silence proves nothing about agents."""
        return time.monotonic() - self._ticked > self._interval + 2.0

    async def run(self) -> None:
        """Poll for ever."""
        while True:
            began = time.monotonic()
            gap = began - self._ticked - self._interval
            if gap > 2.0:
                self._excuse(gap)
            self._ticked = began
            if self._leading() and self._world.synced:
                await self._round()
            await asyncio.sleep(max(0.05, self._interval - (time.monotonic() - began)))

    def _excuse(self, gap: float) -> None:
        """Nobody asked during the gap, so nobody was silent."""
        for uid, contact in self._agents.contacts.items():
            last = None if contact.last is None else contact.last + gap
            self._agents.contacts[uid] = replace(contact, since=contact.since + gap, last=last)

    async def _round(self) -> None:
        keep: set[str] = set()
        tasks = []
        for key in self._world.job_keys():
            try:
                job = self._world.job(key)
            except UnreadableStatus:
                continue
            if job is None:
                continue
            keep |= {slot.pod_uid for slot in job.status.gang.slots if slot.pod_uid}
            pods = self._world.pods_of(job)
            keep |= {pod.uid for pod in pods}
            if job.deleting:
                continue
            for pod in pods:
                if pod.address and not pod.finished:
                    tasks.append(self._one(key, job.uid, pod.uid, pod.address))
        self._agents.forget_except(keep)
        if tasks:
            # A silent agent must not hold up the others' next poll for its whole timeout.
            running = [asyncio.ensure_future(task) for task in tasks]
            await asyncio.wait(running, timeout=self._interval)
            for late in [task for task in running if not task.done()]:
                late.add_done_callback(lambda task: task.exception())

    async def _one(self, key: JobKey, job_uid: str, pod_uid: str, address: str) -> None:
        if pod_uid in self._in_flight:
            return
        self._in_flight.add(pod_uid)
        try:
            await self._agents.poll(job_uid, pod_uid, address)
        finally:
            self._in_flight.discard(pod_uid)
        # Answers of one gang come close together: one pass sees them all.
        self._queue.add(key, GATHER_SECONDS, routine=True)
