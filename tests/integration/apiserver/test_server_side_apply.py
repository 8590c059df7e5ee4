"""Server-side apply: ownership, conflicts, pruning, and the tracking of other writes."""

from __future__ import annotations

import json
from typing import Any

from conftest_apiserver import ApiServerProcess

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
PODS = "/api/v1/namespaces/default/pods"
MAPS = "/api/v1/namespaces/default/configmaps"


def apply(server: ApiServerProcess, path: str, body: Any, manager: str, query: str = "") -> Any:
    kind = "ConfigMap" if "/configmaps/" in path else "Pod"
    metadata = {"name": path.removesuffix("/status").rpartition("/")[2], **body.get("metadata", {})}
    typed = {"apiVersion": "v1", "kind": kind, **body, "metadata": metadata}
    return server.request("PATCH", f"{path}?fieldManager={manager}{query}", typed, content_type=APPLY)


def fields(obj: dict[str, Any], manager: str) -> dict[str, Any]:
    entries = [item for item in obj["metadata"]["managedFields"] if item["manager"] == manager]
    return {} if not entries else entries[0]["fieldsV1"]


def test_apply_creates_and_owns_exactly_what_it_sets(apiserver: ApiServerProcess) -> None:
    body = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    created = apply(apiserver, f"{PODS}/owned", body, "me")
    assert created.status == 201
    assert fields(created.body, "me") == {
        "f:metadata": {"f:labels": {"f:a": {}}},
        "f:spec": {"f:containers": {'k:{"name":"c"}': {".": {}, "f:image": {}, "f:name": {}}}},
    }
    again = apply(apiserver, f"{PODS}/owned", body, "me")
    assert (again.status, again.body) == (200, created.body)


def test_fields_of_another_manager_conflict_unless_forced(apiserver: ApiServerProcess) -> None:
    path = f"{MAPS}/contested"
    apply(apiserver, path, {"data": {"a": "1", "b": "1"}}, "first")
    refused = apply(apiserver, path, {"data": {"a": "2"}}, "second")
    assert (refused.status, refused.body["reason"]) == (409, "Conflict")
    assert refused.body["message"] == 'Apply failed with 1 conflict: conflict with "first": .data.a'
    assert refused.body["details"]["causes"] == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "first"', "field": ".data.a"}
    ]
    shared = apply(apiserver, path, {"data": {"b": "1"}}, "third")
    assert shared.status == 200
    forced = apply(apiserver, path, {"data": {"a": "2"}}, "second", "&force=true").body
    assert forced["data"] == {"a": "2", "b": "1"}
    assert fields(forced, "first") == {"f:data": {"f:b": {}}}


def test_what_is_no_longer_applied_goes_unless_someone_else_owns_it(apiserver: ApiServerProcess) -> None:
    path = f"{MAPS}/shrinking"
    apply(apiserver, path, {"metadata": {"labels": {"x": "y"}}, "data": {"a": "1", "b": "1", "c": "1"}}, "first")
    apply(apiserver, path, {"data": {"b": "1"}}, "second")
    left = apply(apiserver, path, {"data": {"a": "1"}}, "first").body
    assert left["data"] == {"a": "1", "b": "1"}
    assert "labels" not in left["metadata"]


def test_updates_are_tracked_and_conflict_with_a_later_apply(apiserver: ApiServerProcess) -> None:
    path = f"{MAPS}/tracked"
    apply(apiserver, path, {"data": {"a": "1"}}, "first")
    patched = apiserver.request("PATCH", f"{path}?fieldManager=editor", {"data": {"a": "2"}}, content_type=MERGE).body
    assert fields(patched, "editor") == {"f:data": {"f:a": {}}}
    assert fields(patched, "first") == {}
    refused = apply(apiserver, path, {"data": {"a": "1"}}, "first")
    assert refused.status == 409
    assert 'conflict with "editor" using v1 at ' in refused.body["message"]


def test_list_items_are_owned_by_their_keys(apiserver: ApiServerProcess) -> None:
    path = f"{PODS}/conditions"
    base = {"spec": {"containers": [{"name": "c", "image": "i"}]}}
    apply(apiserver, path, base, "owner")
    for manager, kind in (("one", "Ready"), ("two", "Other")):
        body = {"status": {"conditions": [{"type": kind, "status": "True"}]}}
        assert apply(apiserver, f"{path}/status", body, manager).status == 200
    both = apiserver.request("GET", path).body["status"]["conditions"]
    assert [item["type"] for item in both] == ["Ready", "Other"]
    only = apply(apiserver, f"{path}/status", {"status": {"phase": "Running"}}, "one").body["status"]
    assert [item["type"] for item in only["conditions"]] == ["Other"]


def test_apply_of_status_and_of_the_rest_own_different_fields(apiserver: ApiServerProcess) -> None:
    path = f"{PODS}/split"
    body = {"spec": {"containers": [{"name": "c", "image": "i"}]}, "status": {"phase": "Failed"}}
    created = apply(apiserver, path, body, "me").body
    assert created["status"]["phase"] == "Pending"
    assert "f:status" not in fields(created, "me")
    status = apply(apiserver, f"{path}/status", {**body, "status": {"phase": "Running"}}, "me").body
    entries = {item.get("subresource", ""): item for item in status["metadata"]["managedFields"]}
    assert entries["status"]["fieldsV1"] == {"f:status": {"f:phase": {}}}
    assert set(entries) == {"", "status"}


def test_apply_refuses_what_it_cannot_understand(apiserver: ApiServerProcess) -> None:
    path = f"{MAPS}/refused"
    nameless = apiserver.request("PATCH", path, {"apiVersion": "v1", "kind": "ConfigMap"}, content_type=APPLY)
    assert nameless.status == 422
    assert "fieldManager: Required value: is required for apply patch" in nameless.body["message"]
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other"}}
    assert apply(apiserver, path, other, "me").status == 400
    managed = {"metadata": {"managedFields": [{"manager": "x"}]}}
    assert apply(apiserver, path, managed, "me").status == 400
    stale = {"metadata": {"resourceVersion": "1"}, "data": {"a": "1"}}
    apply(apiserver, path, {"data": {"a": "0"}}, "me")
    assert apply(apiserver, path, stale, "me").status == 409
    forced = apiserver.request("PATCH", f"{path}?force=true", {"data": {}}, content_type=MERGE)
    assert forced.status == 422


def test_apply_wants_to_know_every_field_and_key_once(apiserver: ApiServerProcess) -> None:
    unknown = apply(apiserver, f"{MAPS}/typed", {"dota": {}}, "me")
    assert unknown.status == 500
    assert ".dota: field not declared in schema" in unknown.body["message"]
    twice = {"spec": {"containers": [{"name": "c", "image": "i"}, {"name": "c", "image": "j"}]}}
    refused = apply(apiserver, f"{PODS}/twice", twice, "me")
    assert refused.status == 500
    assert '.spec.containers: duplicate entries for key [name="c"]' in refused.body["message"]


def test_yaml_configurations_are_read(apiserver: ApiServerProcess) -> None:
    text = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: yaml}\ndata: {a: '1'}\n"
    answer = apiserver.request("PATCH", f"{MAPS}/yaml?fieldManager=me", text, content_type=APPLY)
    assert answer.status == 201
    assert json.loads(answer.raw)["data"] == {"a": "1"}
