"""A key is never worked on twice at once, and never forgotten."""

import asyncio

from trireme_local.controllers.workqueue import KeyQueue
from trireme_local.informer import Key


async def test_a_key_added_during_its_visit_is_visited_once_more_and_never_at_the_same_time() -> None:
    visits, active = [], set()
    done = asyncio.Event()

    async def visit(key: Key) -> None:
        assert key not in active
        active.add(key)
        await asyncio.sleep(0.01)
        active.discard(key)
        visits.append(key)
        if len(visits) == 2:
            done.set()

    queue = KeyQueue("test", visit)
    task = asyncio.create_task(queue.run())
    queue.add(("n", "a"))
    await asyncio.sleep(0.005)
    for _ in range(5):
        queue.add(("n", "a"))
    async with asyncio.timeout(5):
        await done.wait()
    await asyncio.sleep(0.05)
    assert visits == [("n", "a")] * 2
    task.cancel()


async def test_a_visit_that_fails_is_tried_again_while_others_go_on() -> None:
    tries = []
    done = asyncio.Event()

    async def visit(key: Key) -> None:
        tries.append(key[1])
        if key[1] == "bad" and tries.count("bad") < 3:
            raise OSError("no connection")
        if tries.count("bad") == 3 and "good" in tries:
            done.set()

    queue = KeyQueue("test", visit)
    task = asyncio.create_task(queue.run())
    queue.add(("n", "bad"))
    queue.add(("n", "good"))
    async with asyncio.timeout(5):
        await done.wait()
    task.cancel()


async def test_of_two_times_the_earlier_one_counts() -> None:
    visits: list[float] = []
    loop = asyncio.get_running_loop()
    seen = asyncio.Event()

    async def visit(key: Key) -> None:
        visits.append(loop.time())
        seen.set()

    queue = KeyQueue("test", visit)
    task = asyncio.create_task(queue.run())
    began = loop.time()
    for seconds in (30.0, 0.05, 60.0):
        queue.add_after(("n", "a"), seconds)
    async with asyncio.timeout(5):
        await seen.wait()
    assert 0.04 < visits[0] - began < 3
    await asyncio.sleep(0.1)
    assert len(visits) == 1
    task.cancel()
