"""A watch whose reader is slow: an event that waits when the next bookmark is already due."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from trireme_local.apiserver import watch
from trireme_local.apiserver.bootstrap import ensure_system_objects, system_options
from trireme_local.apiserver.operations import Operations
from trireme_local.apiserver.registry import Registry
from trireme_local.apiserver.request import Accepted
from trireme_local.apiserver.selectors import Selector
from trireme_local.apiserver.store import Store


async def test_an_event_that_waits_when_a_bookmark_is_due_arrives_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "BOOKMARK_SECONDS", 0.05)
    store = Store(tmp_path / "state.db")
    operations = Operations(store, Registry(store))
    ensure_system_objects(operations)
    maps = operations.registry.find("", "v1", "configmaps")
    assert maps is not None

    def create(name: str) -> None:
        operations.create(maps, "default", {"metadata": {"name": name}}, system_options())

    create("first")
    options = watch.ListOptions(Selector(), bookmarks=True, timeout_seconds=60)
    events = watch.Watcher(store, maps, "default", options, Accepted()).events(lambda close: None)
    assert b"first" in await anext(events)
    create("second")
    assert b"second" in await anext(events)
    await asyncio.sleep(0.1)
    create("third")
    line = await asyncio.wait_for(anext(events), 5)
    assert json.loads(line)["type"] == "ADDED"
    assert json.loads(await asyncio.wait_for(anext(events), 5))["type"] == "BOOKMARK"
    await events.aclose()
