"""Keeps the store's copy of an attempt's logs and step records up to date."""

from __future__ import annotations

import asyncio
import itertools
import logging

from trireme.checkpoints import JobKeys
from trireme_trainer.agent.history import StepHistory
from trireme_trainer.agent.ranks import RankSet
from trireme_trainer.checkpoint.store import ObjectStore, StoreError

log = logging.getLogger(__name__)
LOG_SECONDS = (4.0, 8.0, 15.0, 30.0)
"""Waits between uploads of the logs: short at first, for the sake of ranks and nodes that die young."""


class LogUpload:
    """The logs and step records of one attempt on one node."""

    def __init__(self, ranks: RankSet, history: StepHistory, store: ObjectStore, keys: JobKeys) -> None:
        self._ranks = ranks
        self._history = history
        self._store = store
        self._keys = keys

    async def repeat(self) -> None:
        """Bring what is new, again and again, until cancelled."""
        for number in itertools.count():
            await asyncio.sleep(LOG_SECONDS[min(number, len(LOG_SECONDS) - 1)])
            await self.once()

    async def once(self) -> None:
        """Put the logs' tails and the new steps into the store; a store that is away costs a warning."""
        loop, attempt = asyncio.get_running_loop(), self._ranks.attempt
        try:
            for rank in self._ranks.ranks:
                if (found := rank.log.unstored_tail()) is not None:
                    tail, mark = found
                    await loop.run_in_executor(None, self._store.put, self._keys.log(attempt, rank.rank), tail)
                    rank.log.stored(mark)
            for segment, lines in self._history.take():
                key = self._keys.history(attempt, segment)
                await loop.run_in_executor(None, self._store.put, key, b"".join(lines))
                self._history.stored(segment, len(lines))
        except StoreError as error:
            log.warning("logs: %s", error)
