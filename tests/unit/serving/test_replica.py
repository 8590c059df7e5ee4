"""What a replica tells the kubelet and the operator while vLLM comes up, is sick, ends, and drains."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from model_files import adapter, config, model, write_json

from trireme.protocol.serving import ReplicaState
from trireme_serving import replica as module
from trireme_serving.errors import EngineFailed, EngineRefused
from trireme_serving.replica import Replica
from trireme_serving.settings import Settings


class FakeEngine:
    """vLLM as the program sees it."""

    made: list["FakeEngine"] = []  # noqa: RUF012  # reset by the fixture
    fails = ""

    def __init__(self, config: Any, directory: Path, address: str, scratch: Path) -> None:
        self.listed = {config.served_name: str(directory)}
        self.well = True
        self.requests = 0
        self.drains = 0
        self.stopped = False
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        FakeEngine.made.append(self)

    async def start(self) -> None:
        pass

    async def wait_healthy(self, deadline_seconds: float) -> None:
        if FakeEngine.fails:
            raise EngineFailed(FakeEngine.fails)

    async def wait_ended(self) -> str:
        return await self.ended

    async def healthy(self) -> bool:
        return self.well

    async def models(self) -> dict[str, str]:
        return dict(self.listed)

    async def load_adapter(self, name: str, directory: Path) -> None:
        self.listed[name] = str(directory)

    async def unload_adapter(self, name: str) -> None:
        del self.listed[name]

    async def in_flight(self, *, drain: bool = False) -> int:
        self.drains += drain
        if self.ended.done():
            raise EngineRefused("gone")
        return self.requests

    async def stop(self) -> None:
        self.stopped = True


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeEngine.made, FakeEngine.fails = [], ""
    monkeypatch.setattr(module, "Engine", FakeEngine)
    monkeypatch.setattr(module, "RETRY_SECONDS", (0.05,))
    monkeypatch.setattr(module, "ROUND_SECONDS", 0.02)
    monkeypatch.setattr(module, "LEAVE_SECONDS", 0.2)


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    model(tmp_path / "model", architecture="LlamaForCausalLM")
    found = config(str(tmp_path / "model"), drain_seconds=1)
    path = tmp_path / "adapters.json"
    write_json(path, {"adapters": []})
    return Replica(Settings(found, path, tmp_path / "cache", tmp_path / "scratch", "127.0.0.1"))


async def reach(replica: Replica, state: ReplicaState) -> None:
    for _ in range(1000):
        if replica.report().state == state:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"never {state}: {replica.report()}")


async def test_it_is_ready_once_the_adapters_that_it_must_have_are_loaded(replica: Replica, tmp_path: Path) -> None:
    source = str(adapter(tmp_path / "fr", str(tmp_path / "model")))
    write_json(tmp_path / "adapters.json", {"adapters": [{"name": "fr", "id": "1", "uri": source}]})
    task = asyncio.create_task(replica.run())
    assert not replica.started
    await reach(replica, ReplicaState.READY)
    assert [a.name for a in replica.report().adapters] == ["fr"]
    assert (replica.started, replica.ready, replica.alive) == (True, True, True)
    replica.stop()
    assert await task == 0


async def test_it_is_not_ready_while_the_list_of_adapters_cannot_be_read(replica: Replica, tmp_path: Path) -> None:
    (tmp_path / "adapters.json").unlink()
    task = asyncio.create_task(replica.run())
    await reach(replica, ReplicaState.LOADING)
    await asyncio.sleep(0.1)
    assert not replica.ready
    write_json(tmp_path / "adapters.json", {"adapters": []})
    await reach(replica, ReplicaState.READY)
    replica.stop()
    await task


async def test_a_bad_model_is_told_and_tried_again_without_ending(replica: Replica, tmp_path: Path) -> None:
    (tmp_path / "model" / "tokenizer.json").rename(tmp_path / "kept")
    task = asyncio.create_task(replica.run())
    await reach(replica, ReplicaState.FAILED)
    report = replica.report()
    assert (report.reason, report.message.partition(":")[0]) == ("TokenizerMissing", "tokenizer.json")
    assert (replica.started, replica.ready, replica.alive) == (True, False, True)
    assert FakeEngine.made == []
    (tmp_path / "kept").rename(tmp_path / "model" / "tokenizer.json")
    await reach(replica, ReplicaState.READY)
    assert replica.report().reason == ""
    replica.stop()
    await task


async def test_an_engine_that_does_not_come_up_is_told_with_its_last_words(replica: Replica) -> None:
    FakeEngine.fails = "ValueError: no memory"
    task = asyncio.create_task(replica.run())
    await reach(replica, ReplicaState.FAILED)
    assert (replica.report().reason, replica.report().message) == ("EngineFailed", "ValueError: no memory")
    assert all(engine.stopped for engine in FakeEngine.made)
    FakeEngine.fails = ""
    await reach(replica, ReplicaState.READY)
    replica.stop()
    await task


async def test_an_engine_that_ends_after_it_answered_ends_the_program_for_the_kubelet_to_start_it_anew(
    replica: Replica,
) -> None:
    task = asyncio.create_task(replica.run())
    await reach(replica, ReplicaState.READY)
    FakeEngine.made[0].ended.set_result("vLLM ended with code -9")
    assert await task == 1
    assert (replica.report().state, replica.report().reason) == (ReplicaState.FAILED, "EngineEnded")


async def test_a_sick_engine_takes_the_replica_out_and_then_has_it_started_anew(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = asyncio.create_task(replica.run())
    await reach(replica, ReplicaState.READY)
    FakeEngine.made[0].well = False
    await asyncio.sleep(0.1)
    now = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + module.SICK_SECONDS / 2)
    assert (replica.ready, replica.alive) == (False, True)
    monkeypatch.setattr(module.time, "monotonic", lambda: now + module.SICK_SECONDS * 2)
    assert not replica.alive
    monkeypatch.undo()
    replica.stop()
    await task


async def test_it_ends_when_the_last_request_is_answered_and_not_before(replica: Replica) -> None:
    task = asyncio.create_task(replica.run())
    await reach(replica, ReplicaState.READY)
    engine = FakeEngine.made[0]
    engine.requests = 1
    replica.stop()
    await reach(replica, ReplicaState.DRAINING)
    assert not replica.ready
    await asyncio.sleep(0.5)
    assert not task.done()
    assert engine.drains > 0
    engine.requests = 0
    assert await task == 0
    assert engine.stopped


async def test_a_request_that_never_ends_holds_it_up_for_no_longer_than_drain_seconds(replica: Replica) -> None:
    task = asyncio.create_task(replica.run())
    await reach(replica, ReplicaState.READY)
    FakeEngine.made[0].requests = 1
    began = time.monotonic()
    replica.stop()
    await task
    assert 1.0 < time.monotonic() - began < 5.0
