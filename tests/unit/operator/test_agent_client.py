"""Agents that do not answer cost those that do nothing."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from trireme.protocol import AgentState, Phase, Report, Settings, Target
from trireme_operator import agents
from trireme_operator.agents import AgentClient
from trireme_operator.build import agent_token
from trireme_operator.decide import PutTarget

ALIVE, SILENT = "127.96.0.1", "127.96.0.2"
KEYS = (b"n" * 32, b"o" * 32)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SETTINGS = Settings(
    checkpoint_interval_steps=None,
    checkpoint_interval_seconds=None,
    keep=2,
    fence_seconds=5,
    start_timeout_seconds=5,
    step_timeout_seconds=5,
    drain_seconds=5,
)


def put(pod: str, address: str, attempt: int = 1) -> PutTarget:
    target = Target(job_uid="job", attempt=attempt, phase=Phase.HOLD, settings=SETTINGS)
    return PutTarget(slot=0, pod_uid=pod, address=address, target=target)


@contextlib.asynccontextmanager
async def serving(
    address: str,
    seen: list[int],
    pause: asyncio.Event | None = None,
    *,
    key: bytes = KEYS[0],
    asked: list[str] | None = None,
) -> AsyncIterator[None]:
    """An agent whose token was made under `key`; the tokens that it is asked with go to `asked`."""
    expected = f"Bearer {agent_token(key, 'job')}"

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        if asked is not None:
            asked.append(given)
        return await handler(request) if given == expected else web.Response(status=401)

    async def take(request: web.Request) -> web.Response:
        seen.append(Target.model_validate_json(await request.read()).attempt)
        if pause is not None:
            await pause.wait()
        return web.Response()

    async def tell(_: web.Request) -> web.Response:
        if pause is not None:
            await pause.wait()
        report = Report(job_uid="job", slot=0, pod="p", node="n", attempt=0, state=AgentState.IDLE, ranks_alive=0)
        return web.Response(text=report.to_json())

    app = web.Application(middlewares=[authenticate])
    app.router.add_put("/v1/target", take)
    app.router.add_get("/v1/report", tell)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, address, agents.AGENT_PORT).start()
    try:
        yield
    finally:
        if pause is not None:
            pause.set()
        await runner.cleanup()


@contextlib.asynccontextmanager
async def client(timeout_seconds: float = 5.0, concurrency: int = 4) -> AsyncIterator[AgentClient]:
    found = AgentClient(KEYS, timeout_seconds, concurrency)
    await found.open()
    try:
        yield found
    finally:
        await found.close()


async def until(look: object, seconds: float = 3.0) -> None:
    deadline = time.monotonic() + seconds
    while not look():  # type: ignore[operator]
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_more_silent_agents_than_the_gate_holds_delay_no_other() -> None:
    heard: list[int] = []
    stop = asyncio.Event()
    async with client() as found, serving(ALIVE, heard), serving(SILENT, [], stop):
        first = [asyncio.create_task(found.poll("job", f"silent-{n}", SILENT)) for n in range(4)]
        for n in range(8):
            found.tell("job", put(f"silent-{n}", SILENT))
        # The polls that fill the gate fail once; from then on these pods wait among their like.
        for task in first:
            task.cancel()
        await asyncio.gather(*first, return_exceptions=True)
        for n in range(8):
            found._failed(f"silent-{n}", found.contacts[f"silent-{n}"], "GET", TimeoutError())
        again = [asyncio.create_task(found.poll("job", f"silent-{n}", SILENT)) for n in range(8)]
        await asyncio.sleep(0.05)
        await asyncio.wait_for(found.poll("job", "alive", ALIVE), 1.0)
        assert found.contacts["alive"].report is not None
        for task in again:
            task.cancel()
        await asyncio.gather(*again, return_exceptions=True)


async def test_telling_does_not_wait_and_the_newest_target_is_told_last() -> None:
    heard: list[int] = []
    pause = asyncio.Event()
    async with client() as found, serving(ALIVE, heard, pause):
        for attempt in (1, 2, 3):
            found.tell("job", put("pod", ALIVE, attempt))
        await until(lambda: heard == [1])
        pause.set()
        await until(lambda: heard == [1, 3])
        await until(lambda: (sent := found.contacts["pod"].sent) is not None and sent.attempt == 3)


async def test_who_did_not_take_its_target_is_told_again_a_little_later(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    async with client() as found:
        found.tell("job", put("pod", ALIVE))  # nobody listens
        await until(lambda: "pod" in found.contacts and found.contacts["pod"].error != "")
        async with serving(ALIVE, heard):
            found.tell("job", put("pod", ALIVE))
            await asyncio.sleep(0.1)
            assert heard == []
            monkeypatch.setattr(agents, "RETRY_SECONDS", 0.0)
            found.tell("job", put("pod", ALIVE))
            await until(lambda: heard == [1])


async def test_an_agent_started_under_an_older_key_is_still_reached_and_its_key_remembered() -> None:
    heard: list[int] = []
    asked: list[str] = []
    async with client() as found, serving(ALIVE, heard, key=KEYS[1], asked=asked):
        await found.poll("job", "pod", ALIVE)
        assert found.contacts["pod"].report is not None
        assert len(asked) == 2
        await found.put("job", put("pod", ALIVE))
        assert heard == [1]
        assert len(asked) == 3


async def test_an_agent_that_takes_no_key_is_alive_and_not_silent() -> None:
    heard: list[int] = []
    async with client() as found, serving(ALIVE, heard, key=b"x" * 32):
        await found.poll("job", "pod", ALIVE)
        contact = found.contacts["pod"]
        assert (contact.key_refused, contact.report) == (True, None)
        assert contact.last is not None
        await found.put("job", put("pod", ALIVE))
        assert heard == []
        assert found.contacts["pod"].key_refused


async def test_a_stranger_at_an_agents_address_is_no_sign_of_its_life() -> None:
    async with client() as found:
        async with serving(ALIVE, []):
            await found.poll("job", "pod", ALIVE)
        last = found.contacts["pod"].last
        async with serving(ALIVE, [], key=b"x" * 32):
            await found.poll("job", "pod", ALIVE)
        assert found.contacts["pod"].last == last
        assert found.contacts["pod"].error
        assert not found.contacts["pod"].key_refused


async def test_who_no_longer_leads_tells_nobody() -> None:
    heard: list[int] = []
    pause = asyncio.Event()
    async with client() as found, serving(ALIVE, heard, pause):
        found.tell("job", put("pod", ALIVE, 1))
        found.tell("job", put("pod", ALIVE, 2))
        await until(lambda: heard == [1])
        found.forget_all()
        pause.set()
        await asyncio.sleep(0.1)
        assert heard == [1]
