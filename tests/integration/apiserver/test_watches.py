"""Watches: order, selectors, bookmarks, history and its end; and what survives a restart."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from conftest_apiserver import ApiServerProcess, start_apiserver

PATH = "/api/v1/namespaces/default/configmaps"
MERGE = "application/merge-patch+json"


def watch(server: ApiServerProcess, query: str, path: str = PATH) -> Iterator[dict[str, Any]]:
    return server.watch(f"{path}?watch=true&{query}")


def create(server: ApiServerProcess, name: str, **labels: str) -> dict[str, Any]:
    answer = server.request("POST", PATH, {"metadata": {"name": name, "labels": labels}})
    assert answer.status == 201
    body: dict[str, Any] = answer.body
    return body


def test_a_watch_replays_history_and_follows(apiserver: ApiServerProcess) -> None:
    start = create(apiserver, "w-0")["metadata"]["resourceVersion"]
    create(apiserver, "w-1")
    events = watch(apiserver, f"resourceVersion={start}&timeoutSeconds=20")
    assert next(events)["object"]["metadata"]["name"] == "w-1"
    threading.Timer(0.2, lambda: apiserver.request("DELETE", f"{PATH}/w-1")).start()
    last = next(events)
    assert last["type"] == "DELETED"
    assert int(last["object"]["metadata"]["resourceVersion"]) > int(start)


def test_leaving_a_selector_is_a_deletion_and_entering_an_addition(apiserver: ApiServerProcess) -> None:
    version = create(apiserver, "moving", tier="a")["metadata"]["resourceVersion"]
    for tier in ("b", "a"):
        apiserver.request("PATCH", f"{PATH}/moving", {"metadata": {"labels": {"tier": tier}}}, content_type=MERGE)
    query = f"resourceVersion={version}&labelSelector=tier%3Da&timeoutSeconds=1"
    assert [event["type"] for event in watch(apiserver, query)] == ["DELETED", "ADDED"]


def test_initial_events_end_with_a_marked_bookmark(apiserver: ApiServerProcess) -> None:
    query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=10"
    events = list(islice(watch(apiserver, query, "/api/v1/namespaces"), 5))
    assert [event["type"] for event in events] == ["ADDED"] * 4 + ["BOOKMARK"]
    assert events[4]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


def test_a_version_from_the_future_is_refused(apiserver: ApiServerProcess) -> None:
    future = apiserver.request("GET", f"{PATH}?resourceVersion=999999999")
    assert (future.status, future.body["reason"]) == (504, "Timeout")


@pytest.mark.local_apiserver  # a real one may as well wait for the version
def test_a_watch_from_the_future_is_refused(apiserver: ApiServerProcess) -> None:
    assert apiserver.request("GET", f"{PATH}?watch=1&resourceVersion=999999999").status == 504


def test_state_and_versions_survive_sigkill_and_old_watches_are_gone(tmp_path: Path) -> None:
    server = start_apiserver(tmp_path / "data")
    try:
        first = create(server, "kept")
        second = create(server, "also-kept")
        token, port = server.token, server.port
        server.stop(signal.SIGKILL)
        server = start_apiserver(tmp_path / "data", port)
        assert server.token == token
        found = server.request("GET", f"{PATH}/kept").body
        assert found == first
        third = create(server, "later")
        assert int(third["metadata"]["resourceVersion"]) > int(second["metadata"]["resourceVersion"])
        (event,) = list(watch(server, f"resourceVersion={first['metadata']['resourceVersion']}&timeoutSeconds=1"))
        assert event["type"] == "ERROR"
        assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")
        newest = second["metadata"]["resourceVersion"]
        (event,) = list(watch(server, f"resourceVersion={newest}&timeoutSeconds=1"))
        assert event["object"]["metadata"]["name"] == "later"
    finally:
        server.stop()


def test_a_watch_ends_at_its_timeout_and_at_shutdown(tmp_path: Path) -> None:
    server = start_apiserver(tmp_path / "data")
    begun = time.monotonic()
    assert list(watch(server, "resourceVersion=0&timeoutSeconds=1&labelSelector=none")) == []
    assert time.monotonic() - begun >= 0.9
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.extend(watch(server, "labelSelector=none")))
    thread.start()
    time.sleep(0.3)
    server.stop()
    thread.join(timeout=10)
    assert not thread.is_alive()
