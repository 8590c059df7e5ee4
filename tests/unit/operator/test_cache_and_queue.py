"""Old news never replaces newer news, and a job is never handled twice at once."""

import asyncio
from typing import Any

import pytest

from trireme_operator.observe.cache import Cache
from trireme_operator.observe.queue import JobKey, WorkQueue

A, B = JobKey("PretrainJob", "ns", "a"), JobKey("PretrainJob", "ns", "b")


def pod(name: str, uid: str, version: int, job: str = "j") -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "ns",
            "name": name,
            "uid": uid,
            "resourceVersion": str(version),
            "labels": {"job": job},
        }
    }


def version(cache: Cache, name: str) -> str | None:
    found = cache.get("ns", name)
    return None if found is None else found["metadata"]["resourceVersion"]


def test_an_older_version_is_ignored() -> None:
    cache = Cache("job")
    cache.handle("ADDED", pod("p", "1", 5))
    cache.handle("MODIFIED", pod("p", "1", 3))
    assert version(cache, "p") == "5"


def test_a_late_event_does_not_bring_the_deleted_back() -> None:
    cache = Cache("job")
    cache.handle("ADDED", pod("p", "1", 5))
    cache.handle("DELETED", pod("p", "1", 7))
    cache.handle("MODIFIED", pod("p", "1", 6))
    assert cache.get("ns", "p") is None
    assert cache.labelled("j") == []


def test_the_deletion_of_a_predecessor_leaves_its_successor() -> None:
    cache = Cache("job")
    cache.handle("ADDED", pod("p", "2", 9))
    cache.handle("DELETED", pod("p", "1", 8))
    assert version(cache, "p") == "9"
    assert len(cache.labelled("j")) == 1


def test_a_list_removes_what_was_missed_but_not_what_came_meanwhile() -> None:
    cache = Cache("job")
    cache.handle("ADDED", pod("gone", "1", 1))
    before = cache.uids()
    cache.handle("ADDED", pod("new", "2", 5))
    cache.replace([], before)
    assert cache.get("ns", "gone") is None
    assert version(cache, "new") == "5"


async def test_a_key_waits_once_and_is_not_handled_twice_at_once() -> None:
    queue = WorkQueue()
    queue.add(A)
    queue.add(A)
    assert await queue.get() == A
    queue.add(A)
    queue.add(B)
    assert await queue.get() == B
    try:
        await asyncio.wait_for(queue.get(), 0.05)
        raise AssertionError("handled twice at once")
    except TimeoutError:
        pass
    queue.done(A)
    assert await asyncio.wait_for(queue.get(), 1) == A


async def test_a_key_is_due_at_the_earliest_time_asked_for() -> None:
    queue = WorkQueue()
    queue.add(A, 30.0)
    queue.add(A, 0.01)
    queue.add(A, 60.0)
    assert await asyncio.wait_for(queue.get(), 5) == A


async def test_after_a_failure_routine_waits_for_the_next_try_and_news_does_not() -> None:
    queue = WorkQueue()
    queue.hold_back(A, 30.0)
    queue.add(A, routine=True)
    queue.add(B, routine=True)
    assert await asyncio.wait_for(queue.get(), 1) == B
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.05)
    queue.add(A)
    assert await asyncio.wait_for(queue.get(), 1) == A


async def test_routine_that_comes_during_a_pass_that_fails_waits_too() -> None:
    queue = WorkQueue()
    queue.add(A)
    assert await queue.get() == A
    queue.add(A, routine=True)
    queue.hold_back(A, 30.0)
    queue.done(A)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.05)
    queue.release(A)
    queue.add(A, routine=True)
    assert await asyncio.wait_for(queue.get(), 1) == A


@pytest.mark.parametrize("ticks", range(4))
async def test_a_worker_ends_when_it_is_cancelled_just_as_news_comes(ticks: int) -> None:
    """Else the operator does not end: cancelled once, the worker would wait for ever."""
    queue = WorkQueue()
    queue.add(B, 3600.0)
    worker = asyncio.create_task(queue.get())
    await asyncio.sleep(0.01)
    queue.add(A, 3600.0)
    for _ in range(ticks):
        await asyncio.sleep(0)
    worker.cancel()
    done, _ = await asyncio.wait([worker], timeout=1)
    worker.cancel()
    assert done
    assert worker.cancelled()
