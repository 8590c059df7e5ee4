"""Recorded requests of kubectl, Kopf and the Python client get the recorded answers again.

The recordings are replayed against a fresh local API server, and against a real kube-apiserver where
KUBEBUILDER_ASSETS (default /usr/local/kubebuilder/bin) has one. The requests are the clients' own; the answers were
given by the local server. Names that a server makes up (uids, versions, times) are followed from answer to request.

Against a real server less is compared: not the words of a refusal, not the fields that a manager owns. It serves a new
kind, and applies a new role, a moment after the write: what only reads is asked again for a while.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import recording
from recording import Exchange

from conftest_apiserver import (
    CONTRACT_COUNTS,
    ApiServerProcess,
    missing_real_apiserver,
    start_apiserver,
    start_real_apiserver,
)

_MADE_UP = ("uid", "resourceVersion")
_VOLATILE = {
    *_MADE_UP,
    *("creationTimestamp", "deletionTimestamp", "lastTransitionTime", "time", "token", "expirationTimestamp"),
    *("description", "continue", "serverAddressByClientCIDRs", "freshness"),
}
_PROTOBUF = "application/vnd.kubernetes.protobuf"
_CATCH_UP_SECONDS = 5.0
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def _identity(item: Any) -> str | None:
    """What tells one item of a list from its neighbours, None for lists that are compared in order."""
    if not isinstance(item, dict):
        return None
    meta = item.get("metadata")
    if isinstance(meta, dict) and meta.get("name"):
        return f"{meta.get('namespace', '')}/{meta['name']}"
    single = ("resource", "subresource", "version", "name")
    for keys in (("manager", "operation", "subresource"), *((key,) for key in single), ("key", "effect")):
        if keys[0] in item:
            return "/".join(str(item.get(key, "")) for key in keys)
    return None


def differences(expected: Any, actual: Any, path: str = "") -> Iterator[str]:
    """Where the actual answer lacks or contradicts what was recorded; it may hold more."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        for key, value in expected.items():
            if key in _VOLATILE:
                continue
            if key == "verbs" and sorted(value) == sorted(actual.get(key, [])):
                continue  # a set
            if key not in actual:
                yield f"{path}.{key} is missing, expected {json.dumps(value)[:200]}"
            else:
                yield from differences(value, actual[key], f"{path}.{key}")
    elif isinstance(expected, list) and isinstance(actual, list):
        names = [_identity(item) for item in expected]
        if expected and all(names) and len(set(names)) == len(names):
            found = {_identity(item): item for item in actual}
            for name, item in zip(names, expected, strict=True):
                if name in found:
                    yield from differences(item, found[name], f"{path}[{name}]")
                else:
                    yield f"{path}[{name}] is missing"
        elif len(expected) != len(actual):
            yield f"{path} has {len(actual)} items, expected {len(expected)}: {json.dumps(actual)[:300]}"
        else:
            for index, (one, other) in enumerate(zip(expected, actual, strict=True)):
                yield from differences(one, other, f"{path}[{index}]")
    elif isinstance(expected, str) and isinstance(actual, str):
        if _TIME.sub("<time>", expected) != _TIME.sub("<time>", actual):
            yield f"{path} is {actual!r}, expected {expected!r}"
    elif expected != actual:
        yield f"{path} is {json.dumps(actual)[:200]}, expected {json.dumps(expected)[:200]}"


class Replay:
    """One replay of a recording; `names` maps recorded uids and versions to those of this server."""

    def __init__(self, server: ApiServerProcess, real: bool) -> None:
        self._server, self._real = server, real
        self._names: dict[str, str] = {}

    def _learn(self, recorded: Any, actual: Any) -> None:
        if isinstance(recorded, dict) and isinstance(actual, dict):
            for key, value in recorded.items():
                if key in _MADE_UP and isinstance(value, str) and isinstance(actual.get(key), str):
                    self._names[value] = actual[key]
                else:
                    self._learn(value, actual.get(key))
        elif isinstance(recorded, list) and isinstance(actual, list):
            found = {_identity(item): item for item in actual}
            for index, item in enumerate(recorded):
                name = _identity(item)
                other = found.get(name) if name else actual[index] if index < len(actual) else None
                self._learn(item, other)

    def _translated(self, value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: self._translated(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [self._translated(item, key) for item in value]
        if key in (*_MADE_UP, "fieldSelector") and isinstance(value, str):
            for recorded in sorted(self._names, key=len, reverse=True):
                if value == recorded or (key == "fieldSelector" and len(recorded) > 8 and recorded in value):
                    return value.replace(recorded, self._names[recorded])
        return value

    def run(self, exchange: Exchange) -> list[str]:
        """Send one request; returns what is different about its answer."""
        reads = exchange.method == "GET" or exchange.path.startswith("/apis/authorization.k8s.io/")
        deadline = time.monotonic() + (_CATCH_UP_SECONDS if self._real and reads else 0.0)
        while (problems := self._run(exchange)) and time.monotonic() < deadline:
            time.sleep(0.2)
        return problems

    def _run(self, exchange: Exchange) -> list[str]:
        query = self._translated(exchange.query)
        if exchange.is_watch and exchange.status == 200:
            return self._watch(exchange, query)
        headers = {key: value for key, value in exchange.headers.items() if key not in ("Accept", "Content-Type")}
        accept = exchange.headers.get("Accept", "*/*")
        answer = self._server.request(
            exchange.method,
            exchange.path + (f"?{urlencode(query)}" if query else ""),
            recording.encoded(self._translated(exchange.body)),
            # The local server knows no protobuf answers; a real one must not give any where both are fine.
            accept="application/json" if accept.startswith(_PROTOBUF) else accept,
            content_type=exchange.headers.get("Content-Type", "application/json"),
            headers=headers,
        )
        if answer.status != exchange.status:
            return [f"status {answer.status}, expected {exchange.status}: {answer.raw[:500]!r}"]
        kind = answer.headers.get("Content-Type", "")
        if kind.split(";")[0] != exchange.content_type.split(";")[0]:
            return [f"Content-Type {kind}, expected {exchange.content_type}"]
        if exchange.path.startswith("/openapi/") or "json" not in kind:
            return [] if answer.raw or not exchange.answer else ["an empty document"]
        body = answer.body
        self._learn(exchange.answer, body)
        return list(differences(self._expected(exchange), _indexed(body)))

    def _watch(self, exchange: Exchange, query: dict[str, str]) -> list[str]:
        """Replay a watch until it has shown what the client saw before it hung up."""
        expected = [event for event in exchange.answer or [] if event["type"] != "BOOKMARK"]
        path = f"{exchange.path}?{urlencode({**query, 'timeoutSeconds': '1' if not expected else '5'})}"
        events = self._server.watch(path, exchange.headers.get("Accept", "*/*"))
        seen = list(islice((event for event in events if event["type"] != "BOOKMARK"), len(expected)))
        self._learn(expected, seen)
        return list(differences(self._unowned(expected), seen))

    def _unowned(self, value: Any) -> Any:
        """An answer without the fields of each manager, where a real server is asked."""
        if not self._real:
            return value
        if isinstance(value, dict):
            return {key: self._unowned(item) for key, item in value.items() if key != "fieldsV1"}
        return [self._unowned(item) for item in value] if isinstance(value, list) else value

    def _expected(self, exchange: Exchange) -> Any:
        expected = self._unowned(exchange.answer)
        if exchange.path == "/version":
            return {"major": expected["major"]}
        if isinstance(expected, dict) and expected.get("kind") == "Table":
            return _without_ages(expected)
        if self._real and isinstance(expected, dict) and expected.get("status") == "Failure":
            # Of a refusal, a release may change the words, but not what it is and which fields it names.
            kept = {key: expected[key] for key in ("kind", "status", "reason", "code") if key in expected}
            fields = [{"field": cause.get("field")} for cause in expected.get("details", {}).get("causes", [])]
            return {**kept, "details": {"causes": fields}} if fields else kept
        return expected


def _without_ages(table: dict[str, Any]) -> dict[str, Any]:
    names = [column["name"].lower() for column in table["columnDefinitions"]]
    moving = [index for index, name in enumerate(names) if name in ("age", "created at", "last seen", "first seen")]
    rows = [
        {**row, "cells": {str(index): cell for index, cell in enumerate(row["cells"]) if index not in moving}}
        for row in table["rows"]
    ]
    return {**table, "rows": rows}


def _indexed(value: Any) -> Any:
    """Tables with cells by position, as `_without_ages` leaves them."""
    if isinstance(value, dict) and value.get("kind") == "Table":
        rows = [{**row, "cells": {str(i): cell for i, cell in enumerate(row["cells"])}} for row in value["rows"]]
        return {**value, "rows": rows}
    return value


def _replay(server: ApiServerProcess, which: str) -> list[str]:
    problems = []
    for name in ("kubectl", "python-client", "kopf"):
        replay = Replay(server, which == "real")
        for number, exchange in enumerate(recording.load(name)):
            CONTRACT_COUNTS[which] += 1
            problems += [
                f"{name} {number} {exchange.method} {exchange.path}: {problem}" for problem in replay.run(exchange)
            ]
    return problems


def test_recorded_requests_get_the_recorded_answers_from_the_local_server(tmp_path: Path) -> None:
    server = start_apiserver(tmp_path / "data")
    try:
        problems = _replay(server, "local")
    finally:
        server.stop()
    assert not problems, "\n".join(problems)


@pytest.mark.real_apiserver
def test_recorded_requests_get_the_recorded_answers_from_a_real_server(tmp_path: Path) -> None:
    if missing := missing_real_apiserver():
        pytest.skip(missing)
    server = start_real_apiserver(tmp_path)
    try:
        problems = _replay(server, "real")
    finally:
        server.stop()
    assert not problems, "\n".join(problems)


def test_a_difference_is_noticed() -> None:
    expected = {"a": [{"name": "x", "v": 1}], "uid": "1", "time": "t"}
    assert list(differences(expected, {"a": [{"name": "y"}, {"name": "x", "v": 1}], "more": 1})) == []
    assert list(differences(expected, {"a": [{"name": "x", "v": 2}]})) == [".a[x].v is 2, expected 1"]
    assert list(differences(expected, {})) == ['.a is missing, expected [{"name": "x", "v": 1}]']
