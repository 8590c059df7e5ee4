"""Two-phase commit: the manifest goes last, once, and only for the attempt that still may."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from trireme.checkpoints import JobKeys, Manifest
from trireme_storage.store import StoredObject, StoreError
from trireme_trainer.agent import committer as module
from trireme_trainer.agent.committer import CommitPlace, Committer
from trireme_trainer.agent.errors import AttemptOver, PeerError
from trireme_trainer.agent.messages import SavedEvent, SaveFailedEvent, SlotShards

KEYS = JobKeys("s3://bucket/p", "default", "job", "uid")
DESCRIBED = {
    "step": 0, "tokens": 0, "modelDigest": "m", "datasetDigest": "d", "layout": {"tensor": 1}, "state": {},
}  # fmt: skip


class MemoryStore:
    """Objects in a dictionary; can be away, or slow."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.order: list[str] = []
        self.away = False
        self.gate = threading.Event()
        self.gate.set()

    def _check(self) -> None:
        self.gate.wait(10)
        if self.away:
            raise StoreError("StoreUnavailable", "away", retryable=True)

    def put(self, key: str, data: bytes) -> None:
        self._check()
        self.objects[key] = data
        self.order.append(key)

    def upload(self, path: Path, key: str) -> None:
        self.put(key, path.read_bytes())

    def get(self, key: str) -> bytes:
        return self.objects[key]

    def entries(self, prefix: str) -> list[StoredObject]:
        now = datetime.now(UTC)
        return [StoredObject(k, len(v), now) for k, v in sorted(self.objects.items()) if k.startswith(prefix)]

    def delete(self, keys: list[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)


class Gang:
    """Committers of all slots, wired together."""

    def __init__(self, root: Path, slots: int = 2, ranks: int = 2, keep: int = 3) -> None:
        self.root, self.ranks = root, ranks
        self.store = MemoryStore()
        self.store.objects[f"{KEYS.job_prefix}a1/resume.json"] = b'{"attempt": 1}'
        self.leader_reachable = True
        self.busy: list[bool] = []
        self.slots = [
            Committer(
                CommitPlace(KEYS, 1, slot, slots, ranks),
                self.store,  # type: ignore[arg-type]
                send_to_leader=self._send,
                on_change=self._changed,
                retention=lambda: (keep, []),
            )
            for slot in range(slots)
        ]

    def _changed(self) -> None:
        if hasattr(self, "slots"):
            self.busy.append(self.slots[0].busy)

    async def _send(self, message: SlotShards) -> None:
        await asyncio.sleep(0)
        if not self.leader_reachable:
            raise PeerError("no route")
        self.slots[0].shards(message)

    def save(self, step: int, slots: list[int] | None = None) -> None:
        for slot in range(len(self.slots)) if slots is None else slots:
            for local in range(self.ranks):
                rank = slot * self.ranks + local
                self.slots[slot].saved(rank, written(self, step, rank=rank))

    def local_saves(self) -> list[Path]:
        return list(self.root.glob("slot-*/step-*"))

    @property
    def committed(self) -> list[int]:
        names = [k.rsplit("/", 2)[-2] for k in self.store.objects if k.endswith("/manifest.json")]
        return sorted(int(n.removeprefix("step-")) for n in names)


def written(gang: Gang, step: int, *, rank: int) -> SavedEvent:
    """What a rank says after writing its files."""
    slot = rank // gang.ranks
    directory = gang.root / f"slot-{slot}" / f"step-{step}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"shard-{rank}").write_bytes(f"{step} {rank}".encode())
    return SavedEvent(
        step=step,
        tokens=step,
        directory=str(directory),
        files=[f"shard-{rank}"],
        stall_seconds=0.1,
        manifest={**DESCRIBED, "step": step} if rank == 0 else None,
    )


async def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 conditions come true in threads
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", (0.02,))


async def test_the_manifest_lists_every_ranks_files_and_goes_last(tmp_path: Path) -> None:
    gang = Gang(tmp_path)
    gang.save(10)
    await until(lambda: gang.committed == [10])
    assert gang.store.order[-1] == KEYS.manifest(1, 10)
    manifest = Manifest.decode(gang.store.objects[KEYS.manifest(1, 10)])
    assert [(f.path, f.rank) for f in manifest.files] == [(f"shard-{r}", r) for r in range(4)]
    fact = gang.slots[0].report().last_committed
    assert fact is not None
    assert (fact.step, fact.manifest_digest, fact.bytes) == (10, manifest.digest, manifest.total_bytes)
    await until(lambda: not any(s.pending for s in gang.slots))
    assert gang.local_saves() == []
    assert gang.busy[-1] is False


async def test_nothing_is_committed_while_one_slot_is_missing(tmp_path: Path) -> None:
    gang = Gang(tmp_path)
    gang.save(10, slots=[0])
    await until(lambda: len(gang.store.order) == 2)
    await asyncio.sleep(0.1)
    assert gang.committed == []
    assert gang.slots[0].busy
    gang.save(10, slots=[1])
    await until(lambda: gang.committed == [10])


async def test_a_failing_save_is_retried_reported_and_gives_way_to_a_newer_one(tmp_path: Path) -> None:
    gang = Gang(tmp_path)
    gang.store.away = True
    gang.save(10)
    await until(lambda: gang.slots[0].report().failing_reason == "StoreUnavailable")
    assert not gang.slots[0].busy  # training may save again
    gang.save(20)
    gang.store.away = False
    await until(lambda: gang.committed == [20] and not gang.local_saves())
    report = gang.slots[0].report()
    assert report.failing_reason is None
    assert report.in_progress_step is None
    assert gang.local_saves() == []


async def test_an_upload_in_flight_is_not_lost_to_a_newer_save(tmp_path: Path) -> None:
    gang = Gang(tmp_path)
    gang.store.gate.clear()
    gang.save(10)
    await asyncio.sleep(0.05)
    gang.save(20)
    assert gang.slots[0].report().in_progress_step == 20
    gang.store.gate.set()
    await until(lambda: gang.committed == [10, 20] and not gang.local_saves())
    manifests = [k.rsplit("/", 2)[-2] for k in gang.store.order if k.endswith("/manifest.json")]
    assert manifests == ["step-10", "step-20"]
    assert not any(slot.pending for slot in gang.slots)


async def test_a_save_that_misses_a_slot_is_superseded_when_a_newer_one_is_committed(tmp_path: Path) -> None:
    gang = Gang(tmp_path)
    gang.save(10, slots=[0])
    await until(lambda: any("step-10/shard-1" in k for k in gang.store.objects))
    gang.save(20)
    await until(lambda: gang.committed == [20] and not gang.slots[0].pending)
    assert gang.local_saves() == []


async def test_a_queued_save_starts_when_the_one_before_begins_to_fail(tmp_path: Path) -> None:
    gang = Gang(tmp_path, slots=1)
    gang.store.gate.clear()
    gang.save(10)
    await asyncio.sleep(0.05)
    gang.save(20)
    gang.store.away = True
    gang.store.gate.set()
    await until(lambda: gang.slots[0].report().failing_reason == "StoreUnavailable")
    gang.store.away = False
    await until(lambda: gang.committed == [20] and not gang.slots[0].pending)


@pytest.mark.parametrize("hurt_slot", [0, 1])
async def test_after_a_short_outage_uploads_longer_than_the_interval_are_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurt_slot: int
) -> None:
    gang = Gang(tmp_path)
    upload, mended = gang.store.upload, threading.Event()

    def slow(path: Path, key: str) -> None:
        if not mended.is_set() and f"slot-{hurt_slot}" in str(path):
            raise StoreError("StoreUnavailable", "away", retryable=True)
        time.sleep(0.25)
        upload(path, key)

    monkeypatch.setattr(gang.store, "upload", slow)
    gang.save(10)
    await until(lambda: gang.slots[0].report().failing_reason)
    mended.set()
    for step in range(20, 1000, 10):
        await asyncio.sleep(0.05)
        if len(gang.committed) >= 2:
            break
        if not gang.slots[0].busy:
            gang.save(step)
        assert len(gang.local_saves()) <= 4, "one on its way and the newest, on each of two nodes"
    assert len(gang.committed) >= 2
    assert gang.slots[0].report().failing_reason is None


async def test_a_save_whose_next_try_goes_well_does_not_give_way(tmp_path: Path) -> None:
    gang = Gang(tmp_path, slots=1)
    gang.store.away = True
    gang.save(10)
    await until(lambda: gang.slots[0].report().failing_reason)
    gang.store.gate.clear()
    gang.store.away = False
    await until(lambda: gang.slots[0].busy)
    gang.save(20)
    gang.store.gate.set()
    await until(lambda: gang.committed == [10, 20])


async def test_a_save_that_gave_way_on_one_slot_is_awaited_on_none(tmp_path: Path) -> None:
    gang = Gang(tmp_path)
    gang.save(10, slots=[0])
    await until(lambda: any("step-10/shard-1" in k for k in gang.store.objects))
    gang.store.away = True
    gang.save(10, slots=[1])
    await until(lambda: gang.slots[1].report().failing_reason)
    gang.save(20, slots=[1])
    gang.slots[0].save_failed(0, SaveFailedEvent(step=20, reason="DiskFull", message="no space"))
    await until(lambda: not gang.slots[0].pending)


async def test_files_that_are_in_the_store_need_no_disk_while_others_are_awaited(tmp_path: Path) -> None:
    gang = Gang(tmp_path)
    gang.save(10, slots=[0])
    await until(lambda: not gang.local_saves())
    gang.save(10, slots=[1])
    await until(lambda: gang.committed == [10])


async def test_files_that_are_in_the_store_are_not_sent_again_when_another_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gang = Gang(tmp_path, slots=1)
    upload, sent, mend = gang.store.upload, [], threading.Event()

    def one_fails(path: Path, key: str) -> None:
        sent.append(path.name)
        if path.name == "shard-0" and not mend.is_set():
            raise StoreError("StoreUnavailable", "one part was lost", retryable=True)
        upload(path, key)

    monkeypatch.setattr(gang.store, "upload", one_fails)
    gang.save(10)
    await until(lambda: gang.slots[0].report().failing_reason == "StoreUnavailable")
    assert gang.busy[-1], "a save that moves on does not give way to a newer one"
    await until(lambda: sent.count("shard-0") > 1 and not gang.slots[0].busy)
    mend.set()
    await until(lambda: gang.committed == [10])
    assert sent.count("shard-1") == 1


async def test_a_slot_that_cannot_upload_tells_slot_0(tmp_path: Path) -> None:
    gang = Gang(tmp_path)
    gang.save(10, slots=[0])
    await until(lambda: len(gang.store.order) == 2)
    gang.store.away = True
    gang.save(10, slots=[1])
    await until(lambda: gang.slots[0].report().failing_message is not None)
    assert "slot 1" in (gang.slots[0].report().failing_message or "")
    gang.store.away = False
    await until(lambda: gang.committed == [10])


async def test_a_rank_that_cannot_write_fails_the_save_and_frees_the_next(tmp_path: Path) -> None:
    gang = Gang(tmp_path)
    gang.save(10, slots=[0])
    gang.slots[1].save_failed(3, SaveFailedEvent(step=10, reason="DiskFull", message="no space"))
    await until(lambda: gang.slots[0].report().failing_reason == "DiskFull")
    assert not gang.slots[0].busy
    gang.save(20)
    await until(lambda: gang.committed == [20])


async def test_a_rank_that_wrote_after_another_had_failed_leaves_nothing_and_may_save_again(tmp_path: Path) -> None:
    gang = Gang(tmp_path)
    gang.slots[0].save_failed(1, SaveFailedEvent(step=10, reason="DiskFull", message="no space"))
    # Rank 0 holds its next save back from the moment it wrote, until it is told that nothing is on its way.
    told = len(gang.busy)
    gang.slots[0].saved(0, written(gang, 10, rank=0))
    assert gang.busy[told:] == [False]
    assert not gang.local_saves()
    gang.save(20)
    await until(lambda: gang.committed == [20])


async def test_a_failed_ranks_half_written_files_are_removed_when_no_rank_writes_any_more(tmp_path: Path) -> None:
    gang = Gang(tmp_path)
    saved = written(gang, 10, rank=0)
    gang.slots[0].saved(0, saved)
    gang.slots[1].save_failed(3, SaveFailedEvent(step=10, reason="DiskFull", message="no space"))
    await until(lambda: gang.slots[0].report().failing_reason == "DiskFull")
    assert gang.local_saves()  # rank 1 is still at it
    failed = SaveFailedEvent(step=10, reason="DiskFull", message="no space", directory=saved.directory)
    gang.slots[0].save_failed(1, failed)
    assert not gang.local_saves()


async def test_slot_0_hears_that_a_slot_gave_up_although_the_first_message_was_lost(tmp_path: Path) -> None:
    gang = Gang(tmp_path)
    gang.leader_reachable = False
    gang.save(10, slots=[0])
    gang.slots[1].save_failed(3, SaveFailedEvent(step=10, reason="DiskFull", message="no space"))
    await asyncio.sleep(0.1)
    assert gang.slots[0].busy
    gang.leader_reachable = True
    await until(lambda: not gang.slots[0].pending)
    assert gang.slots[0].report().failing_reason == "DiskFull"


async def test_an_unforeseen_error_is_reported_and_the_save_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gang = Gang(tmp_path)
    upload = gang.store.upload

    def broken(path: Path, key: str) -> None:
        monkeypatch.setattr(gang.store, "upload", upload)
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(gang.store, "upload", broken)
    gang.save(10, slots=[0])
    await until(lambda: gang.slots[0].report().failing_reason == "SaveFailed")
    gang.save(10, slots=[1])
    await until(lambda: gang.committed == [10])


async def test_a_save_that_misses_a_slot_for_long_is_failing_and_holds_no_newer_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MISSING_SLOT_SECONDS", 0.05)
    gang = Gang(tmp_path)
    gang.save(10, slots=[0])
    await until(lambda: gang.slots[0].report().failing_reason == "SlotMissing")
    assert not gang.slots[0].busy
    gang.save(10, slots=[1])  # late is better than never
    await until(lambda: gang.committed == [10])
    assert gang.slots[0].report().failing_reason is None


async def test_a_slot_tries_until_slot_0_hears_it(tmp_path: Path) -> None:
    gang = Gang(tmp_path)
    gang.leader_reachable = False
    gang.save(10)
    await until(lambda: gang.slots[1].report().failing_reason == "LeaderUnreachable")
    assert gang.committed == []
    gang.leader_reachable = True
    await until(lambda: gang.committed == [10])


async def test_a_cancelled_committer_puts_no_manifest_even_when_its_files_arrive(tmp_path: Path) -> None:
    gang = Gang(tmp_path)
    gang.store.gate.clear()
    gang.save(10)
    await asyncio.sleep(0.1)
    cancelling = asyncio.gather(*(slot.cancel() for slot in gang.slots))
    await asyncio.sleep(0.1)
    gang.store.gate.set()
    await cancelling
    gang.save(20)
    await asyncio.sleep(0.2)
    assert gang.committed == []
    with pytest.raises(AttemptOver):
        gang.slots[0].shards(SlotShards(job_uid="uid", attempt=1, step=10, slot=1))


async def test_shards_of_a_save_long_gone_start_nothing(tmp_path: Path) -> None:
    gang = Gang(tmp_path)
    gang.save(20)
    await until(lambda: gang.committed == [20] and not gang.slots[0].pending)
    gang.slots[0].shards(SlotShards(job_uid="uid", attempt=1, step=10, slot=1))
    assert not gang.slots[0].pending


async def test_shards_of_another_attempt_are_refused(tmp_path: Path) -> None:
    gang = Gang(tmp_path)
    with pytest.raises(AttemptOver, match="attempt 1, not 2"):
        gang.slots[0].shards(SlotShards(job_uid="uid", attempt=2, step=10, slot=1))


async def test_a_committer_that_is_cancelled_while_it_deletes_stops_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gang = Gang(tmp_path, slots=1, keep=1)
    for step in (1, 2, 3):
        gang.store.objects[KEYS.manifest(1, step)] = b"{}"
    cancelling: list[asyncio.Future[None]] = []
    delete, loop = gang.store.delete, asyncio.get_running_loop()

    def last_delete(keys: list[str]) -> None:
        if not cancelling:
            cancelling.append(asyncio.run_coroutine_threadsafe(gang.slots[0].cancel(), loop))  # type: ignore[arg-type]
            time.sleep(0.1)
        delete(keys)

    monkeypatch.setattr(gang.store, "delete", last_delete)
    gang.save(10)
    await until(lambda: cancelling and cancelling[0].done())
    assert len(gang.committed) == 3


async def test_old_checkpoints_go_when_a_new_one_is_committed(tmp_path: Path) -> None:
    gang = Gang(tmp_path, keep=2)
    for step in (10, 20, 30):
        gang.save(step)
        await until(lambda step=step: step in gang.committed and not any(s.pending for s in gang.slots))
    await until(lambda: gang.committed == [20, 30])
    assert not [k for k in gang.store.objects if "/step-10/" in k]
