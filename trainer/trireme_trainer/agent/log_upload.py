"""Keeps the store's copy of an attempt's logs, step records and samples up to date."""

from __future__ import annotations

import asyncio
import itertools
import logging

from trireme.checkpoints import JobKeys
from trireme_storage.store import ObjectStore, StoreError
from trireme_trainer.agent.history import SampleHistory, StepHistory
from trireme_trainer.agent.ranks import RankSet

log = logging.getLogger(__name__)
LOG_SECONDS = (4.0, 8.0, 15.0, 30.0)
"""Waits between uploads of the logs: short at first, for the sake of ranks and nodes that die young."""


class LogUpload:
    """The logs, step records and samples of one attempt on one node."""

    def __init__(
        self, ranks: RankSet, history: StepHistory, samples: SampleHistory, store: ObjectStore, keys: JobKeys
    ) -> None:
        self._ranks = ranks
        self._lines = ((history, keys.history), (samples, keys.samples))
        self._store = store
        self._keys = keys
        self._order = asyncio.Lock()
        self._rounds: set[asyncio.Task[None]] = set()

    async def repeat(self) -> None:
        """Bring what is new, again and again, until cancelled."""
        for number in itertools.count():
            await asyncio.sleep(LOG_SECONDS[min(number, len(LOG_SECONDS) - 1)])
            await self.once()

    async def once(self) -> None:
        """Put the logs' tails and the new steps into the store; a store or disk that fails costs a warning.

        Whoever cancels this ends only the wait: a put cannot be called back, and the next round must not overtake it.
        """
        round_ = asyncio.create_task(self._round())
        self._rounds.add(round_)
        round_.add_done_callback(self._rounds.discard)
        await asyncio.shield(round_)

    async def _round(self) -> None:
        async with self._order:
            try:
                await self._put_all()
            except (StoreError, OSError) as error:
                log.warning("logs: %s", error)

    async def _put_all(self) -> None:
        loop, attempt = asyncio.get_running_loop(), self._ranks.attempt
        for rank in self._ranks.ranks:
            if (found := rank.log.unstored_tail()) is not None:
                tail, mark = found
                await loop.run_in_executor(None, self._store.put, self._keys.log(attempt, rank.rank), tail)
                rank.log.stored(mark)
        for kept, key_of in self._lines:
            for segment, lines in kept.take():
                key = key_of(attempt, segment)
                await loop.run_in_executor(None, self._store.put, key, b"".join(lines))
                kept.stored(segment, len(lines))
