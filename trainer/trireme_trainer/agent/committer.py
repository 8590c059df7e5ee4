"""Uploads what this node's ranks saved, and on slot 0 commits: the manifest goes last, when every rank's files are in.

The agents do this and not the ranks, so that training goes on meanwhile and an upload survives its rank's end.
A failing store never stops training: a save is tried again, and gives way to a newer one while it waits for that.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trireme.checkpoints import JobKeys, Manifest, ShardFile
from trireme.protocol import CheckpointFact, CheckpointReport
from trireme_storage.store import ObjectStore, StoreError, hash_file
from trireme_trainer.agent.errors import AttemptOver, PeerError
from trireme_trainer.agent.messages import SavedEvent, SaveFailedEvent, SlotShards
from trireme_trainer.agent.saves import Save
from trireme_trainer.checkpoint.retention import retain

log = logging.getLogger(__name__)
FACTS_KEPT = 5
RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0)
MISSING_SLOT_SECONDS = 300.0
"""After slot 0's own files are in: how long another slot's may take before the save counts as failing."""


@dataclass(frozen=True)
class CommitPlace:
    """Whose checkpoints these are."""

    keys: JobKeys
    attempt: int
    slot: int
    slots: int
    ranks_per_slot: int


class Committer:
    """The checkpoints of one attempt on one node."""

    def __init__(
        self,
        place: CommitPlace,
        store: ObjectStore,
        *,
        send_to_leader: Callable[[SlotShards], Awaitable[None]],
        on_change: Callable[[], None],
        retention: Callable[[], tuple[int, list[tuple[int, int]]]],
        on_failure: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """`on_change`: `busy` may have changed. `retention`: how many to keep, and which never to delete. `on_failure`:
        a save of this node failed, or a try to bring one in.
        """
        self._place = place
        self._store = store
        self._send_to_leader = send_to_leader
        self._on_change, self._on_failure = on_change, on_failure
        self._retention = retention
        self._saves: dict[int, Save] = {}
        self._committed: list[tuple[CheckpointFact, float]] = []
        self._failing: tuple[str, str] | None = None
        self._in_flight = 0
        self._lock = threading.Lock()
        self._cancelled = False
        self._telling: set[asyncio.Task[None]] = set()
        # Hashing and sending release the interpreter lock; each upload has parallel parts of its own.
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="upload")

    # -- events

    def saved(self, rank: int, event: SavedEvent) -> None:
        """A rank of this node wrote its files."""
        if self._cancelled:
            return
        save = self._saves.setdefault(event.step, Save(event.step, time.monotonic()))
        save.ranks[rank] = event
        save.directories.add(event.directory)
        if save.done:  # another rank failed; this one waits to hear that nothing is on its way any more
            self._discard(save)
            self._on_change()
            return
        self._start_next()

    def save_failed(self, rank: int, event: SaveFailedEvent) -> None:
        """A rank of this node could not write its files: this step is not committed, the next save tries again."""
        if self._cancelled:
            return
        save = self._saves.setdefault(event.step, Save(event.step, time.monotonic()))
        save.failed_ranks.add(rank)
        if event.directory:
            save.directories.add(event.directory)
        self._give_up(event.step)
        self._on_failure(event.reason)
        self._fail(event.reason, f"checkpoint of step {event.step}: rank {rank}: {event.message}")
        self._tell_given_up(event.step, problem_reason=event.reason, problem_message=event.message)

    def shards(self, message: SlotShards) -> None:
        """Slot 0: another slot's files are in, or why not. Raises AttemptOver."""
        if self._cancelled or message.attempt != self._place.attempt:
            raise AttemptOver(f"slot 0 is at attempt {self._place.attempt}, not {message.attempt}")
        if message.step not in self._saves and any(s.done and s.step > message.step for s in self._saves.values()):
            return  # of a save that gave way to a newer one
        save = self._saves.setdefault(message.step, Save(message.step, time.monotonic()))
        if message.given_up:
            self._give_up(message.step)
        if message.problem_reason is not None:
            save.tried(message.slot, failed=not message.moving)
            self._fail(message.problem_reason, f"slot {message.slot}: {message.problem_message}")
            return
        if save.done:  # committed before, or given up
            return
        save.slots[message.slot] = message.files
        save.tried(message.slot, failed=False)
        self._commit_when_complete(save)
        self._on_change()

    def _start_next(self) -> None:
        """Bring in what the ranks wrote in the order of steps, so that no upload in flight is lost to a newer save.

        A save gives way to a newer one while it waits for its turn, or after a failure for its next try: at most one
        that is on its way and the newest lie on this node's disk.
        """
        if self._cancelled:
            return
        whole = [s for s in self._saves.values() if not s.done and len(s.ranks) == self._place.ranks_per_slot]
        whole.sort(key=lambda s: s.step)
        for save in whole[:-1]:
            if save.task is None or self._place.slot in save.stuck:
                log.warning("checkpoint of step %d gives way to that of step %d", save.step, whole[-1].step)
                self._tell_given_up(save.step)
                self._give_up(save.step)  # which comes back here
                return
        for save in whole:
            if save.task is None:
                save.task = asyncio.create_task(self._bring_in(save))
            if not save.task.done():
                return

    def _supersede(self, step: int) -> None:
        """A save is in the store: older ones that still miss files of some slot are not needed."""
        for older in [s for s in self._saves.values() if s.step < step and not s.done]:
            log.warning("checkpoint of step %d is superseded by that of step %d", older.step, step)
            self._give_up(older.step)

    def _give_up(self, step: int) -> None:
        save = self._saves.setdefault(step, Save(step, time.monotonic()))
        if save.task is not None:
            save.task.cancel()
        self._finish(save)

    # -- work

    async def _bring_in(self, save: Save) -> None:
        """Upload this node's files and see them counted; retries until done, superseded or cancelled."""
        for attempt in range(1_000_000):
            save.tried(self._place.slot, failed=False)
            self._on_change()
            try:
                if save.own_files is None:
                    save.own_files = await self._upload(save)
                    self._discard(save)
                if self._place.slot == 0:
                    save.slots[0] = save.own_files
                    asyncio.get_running_loop().call_later(MISSING_SLOT_SECONDS, self._note_missing_slots, save)
                    await self._commit(save)
                else:
                    await self._send_to_leader(self._message(save.step, files=save.own_files))
                    self._failing = None
                    self._supersede(save.step)
                    self._finish(save)
                return
            except AttemptOver as error:
                log.warning("checkpoint of step %d is given up: %s", save.step, error)
                self._finish(save)
                return
            except Exception as error:  # whatever it is, a save must not stay on its way for ever, unseen
                await self._note_failure(save, error)
            await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])

    async def _upload(self, save: Save) -> list[ShardFile]:
        prefix = self._place.keys.step(self._place.attempt, save.step)
        names = [(rank, Path(e.directory) / n, n) for rank, e in sorted(save.ranks.items()) for n in e.files]
        tasks = [
            self._run(self._upload_file, save, path, prefix, name, rank)
            for rank, path, name in names
            if name not in save.uploaded
        ]
        # Every one ends before another try, so that no key is written twice at once; what is there stays there.
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        return [save.hashed[name] for _, _, name in names]

    def _upload_file(self, save: Save, path: Path, prefix: str, name: str, rank: int) -> None:
        if name not in save.hashed:
            size, sha256 = hash_file(path)
            save.hashed[name] = ShardFile(path=name, bytes=size, sha256=sha256, rank=rank)
        if not self._cancelled:
            self._store.upload(path, prefix + name)
            save.uploaded.add(name)

    def _commit_when_complete(self, save: Save) -> None:
        if len(save.slots) == self._place.slots and not save.done and (save.task is None or save.task.done()):
            save.task = asyncio.create_task(self._bring_in(save))

    async def _commit(self, save: Save) -> None:
        """Slot 0: put the manifest once every slot's files are in."""
        if save.done or len(save.slots) < self._place.slots:
            return
        manifest = self._manifest(save)
        data = manifest.encode()
        key = self._place.keys.manifest(self._place.attempt, save.step)
        await self._run(self._put, key, data)
        now = time.monotonic()
        fact = CheckpointFact(
            step=save.step,
            uri=self._place.keys.to_uri(self._place.keys.step(self._place.attempt, save.step)),
            manifest_digest=manifest.digest,
            bytes=manifest.total_bytes,
            seconds_ago=0.0,
            upload_seconds=round(now - save.started_at, 3),
            stall_seconds=round(max(e.stall_seconds for e in save.ranks.values()), 3),
        )
        self._committed = [(fact, now), *self._committed][:FACTS_KEPT]
        self._failing = None
        log.info("checkpoint of step %d committed: %d bytes in %.1f s", save.step, fact.bytes, fact.upload_seconds)
        self._supersede(save.step)
        self._finish(save)
        keep, protected = self._retention()
        try:
            await self._run(self._retain, keep, protected)
        except Exception as error:  # the commit stands whatever becomes of older ones
            log.warning("retention failed, the next commit tries again: %s", error)

    def _put(self, key: str, data: bytes) -> None:
        if self._cancelled:
            raise AttemptOver("cancelled")
        self._store.put(key, data)

    def _retain(self, keep: int, protected: list[tuple[int, int]]) -> None:
        retain(
            self._store,
            self._place.keys,
            attempt=self._place.attempt,
            keep=keep,
            protected=protected,
            cancelled=lambda: self._cancelled,
        )

    def _manifest(self, save: Save) -> Manifest:
        described = next(e.manifest for e in save.ranks.values() if e.manifest is not None)
        files = sorted((f for shards in save.slots.values() for f in shards), key=lambda f: f.path)
        try:
            return Manifest.model_validate(
                {**described, "jobUid": self._place.keys.uid, "attempt": self._place.attempt, "files": files}
            )
        except ValidationError as error:
            raise AttemptOver(f"the ranks described no valid manifest: {error}") from error

    def _note_missing_slots(self, save: Save) -> None:
        """Slot 0: say which slots' files did not come in time, and let the next save take over."""
        missing = sorted(set(range(self._place.slots)) - set(save.slots))
        if missing and not save.done and not self._cancelled:
            names = ", ".join(map(str, missing))
            waited = f"no files of slot {names} {MISSING_SLOT_SECONDS:.0f} s after those of slot 0"
            save.stuck.update(missing)
            self._on_failure("SlotMissing")
            self._fail("SlotMissing", f"checkpoint of step {save.step}: {waited}")

    async def _note_failure(self, save: Save, error: Exception) -> None:
        match error:
            case StoreError():
                reason = error.reason
            case PeerError():
                reason = "LeaderUnreachable"
            case OSError():
                reason = "LocalDiskFailed"
            case _:
                log.error("checkpoint of step %d", save.step, exc_info=error)
                reason = "SaveFailed"
        moving, save.counted = len(save.uploaded) > save.counted, len(save.uploaded)
        save.tried(self._place.slot, failed=not moving)
        self._on_failure(reason)
        self._fail(reason, f"checkpoint of step {save.step}: {type(error).__name__}: {error}")
        if self._place.slot != 0:
            message = self._message(save.step, problem_reason=reason, problem_message=str(error)[:1024], moving=moving)
            await self._tell_leader(message)

    def _tell_given_up(self, step: int, **problem: Any) -> None:
        """Have slot 0 not wait for what will never come."""
        if self._place.slot != 0:
            message = self._message(step, given_up=True, **problem)
            telling = asyncio.create_task(self._tell_leader(message, insist=True))
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)

    async def _tell_leader(self, message: SlotShards, *, insist: bool = False) -> None:
        """Tell slot 0 of a problem; with `insist` until it has heard it, because it waits for what will never come."""
        for attempt in itertools.count():
            try:
                await self._send_to_leader(message)
                return
            except AttemptOver as error:
                log.warning("slot 0 need not be told: %s", error)
                return
            except Exception as error:  # of one try; the next may do
                log.warning("slot 0 cannot be told: %s", error)
            if not insist:
                return
            await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])

    def _fail(self, reason: str, message: str) -> None:
        log.warning("%s: %s", reason, message)
        self._failing = (reason, message)
        self._start_next()
        self._on_change()

    def _message(self, step: int, **fields: Any) -> SlotShards:
        place = self._place
        return SlotShards(job_uid=place.keys.uid, attempt=place.attempt, step=step, slot=place.slot, **fields)

    def _finish(self, save: Save) -> None:
        save.done = True
        self._discard(save)
        self._saves = {s: v for s, v in self._saves.items() if not v.done or s >= save.step}
        self._start_next()
        self._on_change()

    def _discard(self, save: Save) -> None:
        """Free the disk of a save that is done, once no rank of this node writes to it."""
        if len(save.ranks.keys() | save.failed_ranks) < self._place.ranks_per_slot:
            return
        for directory in save.directories:
            shutil.rmtree(directory, ignore_errors=True)

    async def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._counted, function, *arguments)

    def _counted(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Counted in the thread itself: a cancelled task stops waiting for it, the work goes on."""
        with self._lock:
            self._in_flight += 1
        try:
            return function(*arguments)
        finally:
            with self._lock:
                self._in_flight -= 1

    # -- state

    @property
    def pending(self) -> bool:
        """Whether a save is not yet committed (or, beside slot 0, not yet counted)."""
        return any(not s.done for s in self._saves.values())

    @property
    def busy(self) -> bool:
        """Whether the next periodic save should wait; not for one that is stuck, so that a newer one takes over."""
        return any(not s.done and not s.stuck for s in self._saves.values())

    async def cancel(self) -> None:
        """Commit nothing more; waits briefly for what is in flight."""
        self._cancelled = True
        for task in (*self._telling, *(s.task for s in self._saves.values() if s.task is not None)):
            task.cancel()
        deadline = time.monotonic() + 5.0
        while self._in_flight and time.monotonic() < deadline:  # noqa: ASYNC110 counted in threads
            await asyncio.sleep(0.05)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def report(self) -> CheckpointReport:
        """What the operator is told."""
        now = time.monotonic()
        facts = [f.model_copy(update={"seconds_ago": round(now - at, 3)}) for f, at in self._committed]
        steps = [s.step for s in self._saves.values() if not s.done]
        return CheckpointReport(
            last_committed=facts[0] if facts else None,
            committed=facts,
            failing_reason=self._failing[0] if self._failing else None,
            failing_message=self._failing[1] if self._failing else None,
            in_progress_step=max(steps, default=None),
        )
