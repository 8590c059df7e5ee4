"""Ranks get their inputs when every node has its own, and their time to start counts from then."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from trireme.protocol import Settings
from trireme_trainer.agent import attempt as module
from trireme_trainer.agent.attempt import Attempt
from trireme_trainer.agent.errors import PeerError
from trireme_trainer.agent.inputs import InputsLost
from trireme_trainer.agent.messages import Inputs, PeerState

INPUTS = Inputs(dataset_directory="/d")


def node(slot: int, leader: Any = None, *, start_timeout_seconds: float = 5.0) -> Any:
    """One slot of two, whose inputs come as soon as they are asked for."""
    made: Any = Attempt.__new__(Attempt)
    made.number, made.slots_ready, made._threads = 1, set(), None
    made.target = SimpleNamespace(settings=Settings(start_timeout_seconds=start_timeout_seconds))
    made._env = SimpleNamespace(slot=slot, config=SimpleNamespace(slots=2))
    made._fetcher = SimpleNamespace(run=lambda: INPUTS, moved_at=time.monotonic())

    async def state(inputs_of: tuple[int, int]) -> PeerState:
        if leader is None:
            raise PeerError("no route")
        leader.slots_ready.add(inputs_of[0])
        return PeerState(
            job_uid="uid", slot=0, attempt=1, rendezvous_attempt=1, all_inputs_ready=leader.all_inputs_ready
        )

    made._leader = SimpleNamespace(state=state)
    return made


async def test_no_rank_restores_before_the_slowest_node_has_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATE_SECONDS", 0.01)
    first = node(0)
    second = node(1, first)
    waiting = asyncio.create_task(first._inputs())
    await asyncio.sleep(0.1)
    assert not waiting.done()
    assert await asyncio.wait_for(second._inputs(), 5) is INPUTS
    assert await asyncio.wait_for(waiting, 5) is INPUTS


async def test_a_node_does_not_wait_for_ever_for_a_leader_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATE_SECONDS", 0.01)
    with pytest.raises(InputsLost, match="slot 0 did not answer"):
        await asyncio.wait_for(node(1, start_timeout_seconds=0.1)._inputs(), 5)


async def test_a_fetch_that_stands_still_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a disk answers no more: the thread hangs in a system call and raises nothing."""
    monkeypatch.setattr(module, "GATE_SECONDS", 0.01)
    hung, made = threading.Event(), node(0, start_timeout_seconds=0.3)
    made._fetcher.run = hung.wait
    try:
        with pytest.raises(InputsLost, match="no byte of this node's inputs moved for 0 s"):
            await asyncio.wait_for(made._inputs(), 5)
    finally:
        hung.set()


async def test_a_fetch_that_moves_may_take_longer_than_any_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATE_SECONDS", 0.01)
    made = node(0, start_timeout_seconds=0.2)
    made.slots_ready.add(1)

    def slow() -> Inputs:
        for _ in range(10):
            time.sleep(0.1)
            made._fetcher.moved_at = time.monotonic()
        return INPUTS

    made._fetcher.run = slow
    assert await asyncio.wait_for(made._inputs(), 5) is INPUTS


async def test_the_time_to_start_counts_from_the_inputs_and_not_from_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    class Ranks:
        """One rank that has been up for an hour."""

        def __init__(self) -> None:
            self.ranks = [SimpleNamespace(entered_at=-3600.0)]
            self.changed = asyncio.Event()
            self.sent: list[Any] = []

        async def start(self, environment: dict[str, str]) -> None:
            """It is up."""

        def ends(self) -> list[Any]:
            return []

        def send(self, message: Any) -> None:
            self.sent.append(message)

    attempt = node(0)
    attempt.ranks, attempt.slots_ready = Ranks(), {1}
    attempt._root, attempt._drain_deadline = tmp_path, None
    attempt._env.pod_ip, attempt._env.job_file = "127.0.0.1", "job"
    host = SimpleNamespace(address="127.0.0.1")
    attempt.target = SimpleNamespace(settings=Settings(), hosts=[host], to_json=lambda: "{}")
    await asyncio.wait_for(attempt._start(), 5)
    assert attempt.ranks.sent == [INPUTS]
    assert attempt.ranks.ranks[0].entered_at > 0
