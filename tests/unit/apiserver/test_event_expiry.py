"""Events go an hour after they were last written."""

from __future__ import annotations

from pathlib import Path

from trireme_local.apiserver.bootstrap import ensure_system_objects, expire_events, system_options
from trireme_local.apiserver.operations import Operations
from trireme_local.apiserver.registry import Registry
from trireme_local.apiserver.store import Store


def test_only_events_that_nobody_writes_any_more_expire(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    operations = Operations(store, Registry(store))
    ensure_system_objects(operations)
    events = operations.registry.find("", "v1", "events")
    assert events is not None
    for name, written in (("old", "2020-01-01T00:00:00Z"), ("renewed", "2999-01-01T00:00:00Z")):
        body = {
            "metadata": {"name": name},
            "involvedObject": {"namespace": "default"},
            "lastTimestamp": written,
        }
        operations.create(events, "default", body, system_options())
    expire_events(operations, ttl_seconds=60)
    assert {entry.name for entry in store.list("/events")} == {"old", "renewed"}  # both were created just now
    expire_events(operations, ttl_seconds=-60)
    assert {entry.name for entry in store.list("/events")} == {"renewed"}
