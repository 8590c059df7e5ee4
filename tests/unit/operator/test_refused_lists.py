"""What may not be listed or watched stops nothing else."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trireme_operator.apply.api import ApiError
from trireme_operator.metrics import INSTRUMENTS
from trireme_operator.observe import watches
from trireme_operator.observe.cache import Cache
from trireme_operator.observe.relist import Relister
from trireme_operator.observe.watches import OnEvent, Resource, Watching

Json = dict[str, Any]
ACCOUNT = Path("/nowhere")
PODS, JOBS = ("", "v1", "pods"), ("trireme.dev", "v1alpha1", "rlhfjobs")


def thing(namespace: str, name: str) -> Json:
    return {"metadata": {"namespace": namespace, "name": name, "uid": f"{namespace}/{name}", "resourceVersion": "1"}}


class Server:
    """Lists of things by path; None is forbidden."""

    def __init__(self, **lists: list[Json] | None) -> None:
        self.lists = lists
        self.status = 403

    async def list_all(self, path: str, query: Any = ()) -> list[Json]:
        parts = path.split("/")
        found = self.lists[parts[parts.index("namespaces") + 1] if "namespaces" in parts else "everywhere"]
        if found is None:
            raise ApiError(self.status, "Forbidden", "no")
        return found


async def relist(server: Server, cache: Cache, *namespaces: str) -> None:
    await Relister(server, namespaces)(cache, "", "v1", "things")  # type: ignore[arg-type]


async def test_what_was_known_before_a_refusal_stays() -> None:
    server, cache = Server(everywhere=[thing("a", "x")]), Cache()
    await relist(server, cache)
    server.lists["everywhere"] = None
    await relist(server, cache)
    assert [raw["metadata"]["name"] for raw in cache] == ["x"]
    assert (cache.synced, cache.settled) == (True, True)


async def test_what_could_never_be_listed_is_settled_and_not_synced_until_it_can() -> None:
    server, cache = Server(everywhere=None), Cache()
    await relist(server, cache)
    assert (cache.synced, cache.settled) == (False, True)
    server.lists["everywhere"] = []
    await relist(server, cache)
    assert (cache.synced, cache.refused) == (True, False)


async def test_a_namespace_that_is_forbidden_keeps_no_other_from_being_seen() -> None:
    server, cache = Server(a=[thing("a", "x"), thing("a", "gone")], b=[thing("b", "y")]), Cache()
    await relist(server, cache, "a", "b")
    server.lists = {"a": [thing("a", "x"), thing("a", "new")], "b": None}
    await relist(server, cache, "a", "b")
    assert sorted(raw["metadata"]["name"] for raw in cache) == ["new", "x", "y"]
    assert cache.synced


async def test_an_outage_is_no_refusal() -> None:
    server, cache = Server(everywhere=None), Cache()
    server.status = 500
    with pytest.raises(ApiError):
        await relist(server, cache)
    assert not cache.settled


async def test_the_time_of_the_last_full_list_is_told() -> None:
    def told() -> float:
        return INSTRUMENTS.registry.get_sample_value(
            "trireme_operator_last_relist_timestamp_seconds", {"resource": "things"}
        ) or 0.0  # fmt: skip

    INSTRUMENTS.last_relist.labels("things").set(1.0)
    await relist(Server(everywhere=None), Cache())
    assert told() == 1.0
    await relist(Server(everywhere=[]), Cache())
    assert told() > 1e9


class Kopf:
    """Watches that end when one of them is refused."""

    def __init__(self) -> None:
        self.opened: list[set[Resource]] = []
        self.refused: set[Resource] = set()
        self.changed = asyncio.Event()

    async def watch(self, handlers: dict[Resource, OnEvent], *_: Any) -> None:
        self.opened.append(set(handlers))
        self.changed.set()
        if self.refused & set(handlers):
            await asyncio.sleep(0.02)
            raise RuntimeError("Kopf's watches ended")
        await asyncio.Event().wait()

    async def until_opened(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.opened) < count:
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
def kopf(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kopf]:
    found = Kopf()
    monkeypatch.setattr(watches, "watch", found.watch)
    monkeypatch.setattr(watches, "RESTART_SECONDS", 0.02)
    return found


async def test_a_refused_watch_is_left_out_until_it_is_permitted(kopf: Kopf) -> None:
    permitted = {PODS}
    kopf.refused = {JOBS}
    handlers: dict[Resource, OnEvent] = dict.fromkeys((PODS, JOBS), lambda event, raw: None)
    watching = Watching(lambda: handlers, lambda resource: resource in permitted, (), None, ACCOUNT)
    task = asyncio.create_task(watching.run())
    await kopf.until_opened(2)
    assert kopf.opened == [{PODS, JOBS}, {PODS}], "all are tried first: a refusal is seen, not assumed"
    watching.permissions_changed()
    await asyncio.sleep(0.05)
    assert len(kopf.opened) == 2, "a change that opens no further watch disturbs none"
    permitted.add(JOBS)
    kopf.refused.clear()
    watching.permissions_changed()
    await kopf.until_opened(3)
    assert kopf.opened[-1] == {PODS, JOBS}
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_watches_that_end_though_all_is_permitted_are_opened_again(kopf: Kopf) -> None:
    kopf.refused = {PODS}
    watching = Watching(lambda: {PODS: lambda event, raw: None}, lambda resource: True, (), None, ACCOUNT)
    task = asyncio.create_task(watching.run())
    await kopf.until_opened(3)
    assert kopf.opened == [{PODS}] * 3
    task.cancel()
