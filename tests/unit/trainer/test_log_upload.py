"""The store ends with the newest tail of a log, whoever stopped waiting for an older one."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from trireme.checkpoints import JobKeys
from trireme.checkpoints.samples import Sample, parse_samples
from trireme.protocol import Progress
from trireme_storage.store import ObjectStore
from trireme_trainer.agent import log_upload as module
from trireme_trainer.agent.history import SampleHistory, StepHistory
from trireme_trainer.agent.log_upload import LogUpload
from trireme_trainer.agent.logs import RankLog
from trireme_trainer.agent.ranks import RankSet

KEYS = JobKeys("s3://bucket/p", "default", "job", "uid")
LOG, HISTORY = KEYS.log(1, 0), KEYS.history(1, 0)


class SlowFirst:
    """A store whose first put is on its way until the gate opens."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.begun = threading.Event()
        self.gate = threading.Event()

    def put(self, key: str, data: bytes) -> None:
        if not self.begun.is_set():
            self.begun.set()
            self.gate.wait(10)
        self.objects[key] = data


def upload_of(log: RankLog, history: StepHistory, store: SlowFirst, samples: SampleHistory | None = None) -> LogUpload:
    ranks = SimpleNamespace(attempt=1, ranks=[SimpleNamespace(rank=0, log=log)])
    return LogUpload(cast(RankSet, ranks), history, samples or SampleHistory(1), cast(ObjectStore, store), KEYS)


@pytest.mark.parametrize("first", ["log", "history"])
async def test_a_put_that_nobody_waits_for_any_more_does_not_land_after_a_newer_one(tmp_path: Path, first: str) -> None:
    log, history, store = RankLog(tmp_path / "rank-0.log", 0), StepHistory(1), SlowFirst()
    upload = upload_of(log, history, store)

    def grow(step: int) -> None:
        if first == "log":
            log.write(f"step {step}\n".encode())
        history.add(Progress(step=step, total_steps=9, tokens=step), 1_700_000_000.0)

    grow(1)
    older = asyncio.create_task(upload.once())
    await asyncio.to_thread(store.begun.wait, 5)
    older.cancel()
    grow(2)
    newer = asyncio.create_task(upload.once())
    await asyncio.sleep(0.1)
    assert store.objects == {}, "a newer put does not overtake the older one"
    store.gate.set()
    await asyncio.wait_for(newer, 5)
    assert store.objects[HISTORY].count(b"\n") == 2
    assert store.objects.get(LOG) == (b"step 1\nstep 2\n" if first == "log" else None)


async def test_a_log_that_cannot_be_read_now_is_uploaded_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_SECONDS", (0.01,))
    log, store = RankLog(tmp_path / "rank-0.log", 0), SlowFirst()
    store.gate.set()
    log.write(b"step 1\n")
    hidden = log.path.rename(tmp_path / "hidden")
    repeating = asyncio.create_task(upload_of(log, StepHistory(1), store).repeat())
    await asyncio.sleep(0.1)
    hidden.rename(log.path)
    async with asyncio.timeout(5):
        while LOG not in store.objects:  # noqa: ASYNC110 put by a thread
            await asyncio.sleep(0.01)
    repeating.cancel()


async def test_samples_are_stored_by_attempt_as_they_came(tmp_path: Path) -> None:
    log, samples, store = RankLog(tmp_path / "rank-0.log", 0), SampleHistory(1, segment_steps=2), SlowFirst()
    store.gate.set()
    upload = upload_of(log, StepHistory(1), store, samples)
    said = [
        Sample(step=step, prompt="How?", completion=f"so, {step}", reward=0.5, rewards={"a": 1.0})
        for step in (1, 1, 2, 3)
    ]
    samples.add(said[:2])
    await upload.once()
    samples.add(said[2:])
    await upload.once()
    found = [parse_samples(store.objects[KEYS.samples(1, segment)]) for segment in (0, 1)]
    assert [record.completion for record in found[0]] == ["so, 1", "so, 1", "so, 2"]
    assert [(record.step, record.attempt, record.rewards) for record in found[1]] == [(3, 1, {"a": 1.0})]
