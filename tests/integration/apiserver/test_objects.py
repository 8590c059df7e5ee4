"""Create, read, update, patch and delete through HTTP, with the answers of a real API server."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from conftest_apiserver import ApiServerProcess, eventually

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
STRATEGIC = "application/strategic-merge-patch+json"
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def test_a_created_object_carries_identity_and_a_second_create_conflicts(apiserver: ApiServerProcess) -> None:
    created = apiserver.request("POST", CONFIG_MAPS, config_map("twice", a="1"))
    assert created.status == 201
    meta = created.body["metadata"]
    assert meta["uid"]
    assert meta["creationTimestamp"].endswith("Z")
    assert int(meta["resourceVersion"]) > 0
    again = apiserver.request("POST", CONFIG_MAPS, config_map("twice"))
    assert (again.status, again.body["reason"]) == (409, "AlreadyExists")
    assert again.body["message"] == 'configmaps "twice" already exists'
    assert again.body["details"] == {"name": "twice", "kind": "configmaps"}


def test_errors_are_status_objects_with_real_reasons(apiserver: ApiServerProcess) -> None:
    missing = apiserver.request("GET", f"{CONFIG_MAPS}/none").body
    assert missing == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'configmaps "none" not found',
        "reason": "NotFound",
        "details": {"name": "none", "kind": "configmaps"},
        "code": 404,
    }
    assert apiserver.request("GET", "/apis/nowhere.dev/v1/galleys").status == 404
    assert apiserver.request("GET", "/api/v1/pods", token="wrong").status == 401
    assert apiserver.request("GET", "/api/v1/pods", token="").status == 403
    assert apiserver.request("GET", "/api/v1/pods", accept="image/png").status == 406
    body = apiserver.request("POST", CONFIG_MAPS, b"x", content_type="text/plain")
    assert (body.status, body.body["reason"]) == (415, "UnsupportedMediaType")
    assert apiserver.request("POST", "/api/v1/namespaces/nowhere/configmaps", config_map("a")).status == 404


@pytest.mark.local_apiserver
def test_what_is_not_there_says_so(apiserver: ApiServerProcess) -> None:
    unknown = apiserver.request("GET", "/apis/apps/v1/statefulsets")
    assert (unknown.status, unknown.body["reason"]) == (404, "NotFound")
    attach = apiserver.request("GET", "/api/v1/namespaces/default/pods/x/exec")
    assert (attach.status, attach.body["reason"]) == (501, "NotImplemented")


def test_a_stale_resource_version_conflicts_on_put_and_in_patches(apiserver: ApiServerProcess) -> None:
    first = apiserver.request("POST", CONFIG_MAPS, config_map("stale", a="1")).body
    path = f"{CONFIG_MAPS}/stale"
    fresh = apiserver.request("PUT", path, {**first, "data": {"a": "2"}})
    assert fresh.status == 200
    for method, body, kind in (
        ("PUT", {**first, "data": {"a": "3"}}, "application/json"),
        ("PATCH", {"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}, "data": {"a": "3"}}, MERGE),
    ):
        answer = apiserver.request(method, path, body, content_type=kind)
        assert answer.status == 409
        assert "the object has been modified" in answer.body["message"]
    wrong = apiserver.request("DELETE", path, {"preconditions": {"uid": "other"}})
    assert wrong.status == 409
    old = apiserver.request("DELETE", path, {"preconditions": {"resourceVersion": "1"}})
    assert old.status == 409
    gone = apiserver.request("DELETE", path, {"preconditions": {"uid": first["metadata"]["uid"]}})
    assert (gone.status, gone.body["status"]) == (200, "Success")
    assert gone.body["details"]["uid"] == first["metadata"]["uid"]


def test_a_write_that_changes_nothing_keeps_the_resource_version(apiserver: ApiServerProcess) -> None:
    first = apiserver.request("POST", CONFIG_MAPS, config_map("same", a="1")).body
    again = apiserver.request("PUT", f"{CONFIG_MAPS}/same", first).body
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    patched = apiserver.request("PATCH", f"{CONFIG_MAPS}/same", {"data": {"a": "1"}}, content_type=MERGE).body
    assert patched["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_dry_run_answers_and_stores_nothing(apiserver: ApiServerProcess) -> None:
    answer = apiserver.request("POST", f"{CONFIG_MAPS}?dryRun=All", config_map("dry"))
    assert answer.status == 201
    assert apiserver.request("GET", f"{CONFIG_MAPS}/dry").status == 404
    assert apiserver.request("POST", f"{CONFIG_MAPS}?dryRun=Some", config_map("dry")).status == 422


def test_generated_names_are_unique_and_keep_their_prefix(apiserver: ApiServerProcess) -> None:
    body = {"metadata": {"generateName": "many-"}}
    names = {apiserver.request("POST", CONFIG_MAPS, body).body["metadata"]["name"] for _ in range(5)}
    assert len(names) == 5
    assert all(name.startswith("many-") and len(name) == 10 for name in names)


def test_json_and_strategic_patches_change_what_they_name(apiserver: ApiServerProcess) -> None:
    apiserver.request("POST", CONFIG_MAPS, config_map("patched", a="1", b="2"))
    path = f"{CONFIG_MAPS}/patched"
    operations = [{"op": "test", "path": "/data/a", "value": "1"}, {"op": "replace", "path": "/data/a", "value": "9"}]
    assert apiserver.request("PATCH", path, operations, content_type=JSON_PATCH).body["data"] == {"a": "9", "b": "2"}
    failed = apiserver.request("PATCH", path, operations, content_type=JSON_PATCH)
    assert failed.status == 422
    body = apiserver.request("PATCH", path, {"data": {"b": None, "c": "3"}}, content_type=STRATEGIC).body
    assert body["data"] == {"a": "9", "c": "3"}
    renamed = apiserver.request("PATCH", path, {"metadata": {"name": "other"}}, content_type=MERGE)
    assert renamed.status in (400, 422)


def test_unknown_fields_warn_by_default_and_fail_when_strict(apiserver: ApiServerProcess) -> None:
    body = {**config_map("fields"), "dota": {}}
    warned = apiserver.request("POST", CONFIG_MAPS, body)
    assert warned.status == 201
    assert warned.headers["Warning"] == '299 - "unknown field \\"dota\\""'
    strict = apiserver.request("POST", f"{CONFIG_MAPS}?fieldValidation=Strict", {**body, "metadata": {"name": "f2"}})
    assert strict.status == 400
    assert 'strict decoding error: unknown field "dota"' in strict.body["message"]


def test_an_immutable_config_map_keeps_its_data(apiserver: ApiServerProcess) -> None:
    apiserver.request("POST", CONFIG_MAPS, {**config_map("frozen", a="1"), "immutable": True})
    answer = apiserver.request("PATCH", f"{CONFIG_MAPS}/frozen", {"data": {"a": "2"}}, content_type=MERGE)
    assert answer.status == 422
    assert answer.body["details"]["causes"][0]["field"] == "data"
    labelled = apiserver.request(
        "PATCH", f"{CONFIG_MAPS}/frozen", {"metadata": {"labels": {"a": "b"}}}, content_type=MERGE
    )
    assert labelled.status == 200


def test_string_data_of_a_secret_is_folded_into_data(apiserver: ApiServerProcess) -> None:
    body = {"metadata": {"name": "s"}, "stringData": {"key": "value"}}
    stored = apiserver.request("POST", "/api/v1/namespaces/default/secrets", body).body
    assert stored["type"] == "Opaque"
    assert stored["data"] == {"key": base64.b64encode(b"value").decode()}
    assert "stringData" not in stored


def test_services_get_an_address_unless_headless(apiserver: ApiServerProcess) -> None:
    path = "/api/v1/namespaces/default/services"
    ports = [{"port": 80}]
    headless = apiserver.request(
        "POST", path, {"metadata": {"name": "h"}, "spec": {"clusterIP": "None", "ports": ports}}
    )
    assert headless.body["spec"]["clusterIPs"] == ["None"]
    one, two = (
        apiserver.request("POST", path, {"metadata": {"name": name}, "spec": {"ports": ports}}).body["spec"][
            "clusterIP"
        ]
        for name in ("one", "two")
    )
    assert one != two
    moved = apiserver.request("PATCH", f"{path}/one", {"spec": {"clusterIP": two}}, content_type=MERGE)
    assert moved.status == 422


def test_finalizers_hold_an_object_until_the_last_is_removed(apiserver: ApiServerProcess) -> None:
    body = config_map("held")
    body["metadata"]["finalizers"] = ["example.dev/hold"]
    apiserver.request("POST", CONFIG_MAPS, body)
    path = f"{CONFIG_MAPS}/held"
    deleted = apiserver.request("DELETE", path, {"propagationPolicy": "Foreground"}).body
    assert deleted["metadata"]["deletionTimestamp"]
    assert deleted["metadata"]["finalizers"] == ["example.dev/hold", "foregroundDeletion"]
    more = {"metadata": {"finalizers": [*deleted["metadata"]["finalizers"], "example.dev/new"]}}
    assert apiserver.request("PATCH", path, more, content_type=MERGE).status == 422
    assert apiserver.request("PATCH", path, {"metadata": {"finalizers": None}}, content_type=MERGE).status == 200
    assert apiserver.request("GET", path).status == 404


def test_selectors_and_pages_of_a_list(apiserver: ApiServerProcess) -> None:
    path = "/api/v1/namespaces/kube-public/configmaps"
    for index in range(5):
        body = config_map(f"page-{index}")
        body["metadata"]["labels"] = {"parity": "even" if index % 2 == 0 else "odd", "index": str(index)}
        assert apiserver.request("POST", path, body).status == 201

    def names(query: str) -> list[str]:
        return [item["metadata"]["name"][-1] for item in apiserver.request("GET", f"{path}?{query}").body["items"]]

    assert names("labelSelector=parity%3Deven") == ["0", "2", "4"]
    assert names("labelSelector=index+in+(1,2),parity!%3Dodd") == ["2"]
    assert names("labelSelector=!parity") == []
    assert names("fieldSelector=metadata.name%3Dpage-3") == ["3"]
    assert apiserver.request("GET", f"{path}?fieldSelector=data.x%3D1").status == 400
    first = apiserver.request("GET", f"{path}?limit=2").body
    assert first["metadata"]["remainingItemCount"] == 3
    apiserver.request("DELETE", f"{path}/page-3")
    rest = apiserver.request("GET", f"{path}?limit=5&continue={first['metadata']['continue']}").body
    assert [item["metadata"]["name"] for item in rest["items"]] == ["page-2", "page-3", "page-4"]
    assert rest["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


@pytest.mark.local_apiserver  # what a server writes into `continue` is its own affair
def test_a_page_of_a_list_that_is_forgotten_has_expired(apiserver: ApiServerProcess) -> None:
    expired = apiserver.request("GET", f"{CONFIG_MAPS}?limit=2&continue=eyJrZXkiOiAieCIsICJzdGFydCI6IDF9")
    assert (expired.status, expired.body["reason"]) == (410, "Expired")


def test_items_of_built_in_lists_carry_no_type(apiserver: ApiServerProcess) -> None:
    body = apiserver.request("GET", "/api/v1/namespaces").body
    assert (body["kind"], body["apiVersion"]) == ("NamespaceList", "v1")
    assert all("kind" not in item and "apiVersion" not in item for item in body["items"])


def test_tables_for_kubectl(apiserver: ApiServerProcess) -> None:
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
    table = apiserver.request("GET", "/api/v1/namespaces", accept=accept).body
    assert table["kind"] == "Table"
    assert [column["name"] for column in table["columnDefinitions"]] == ["Name", "Status", "Age"]
    assert table["rows"][0]["cells"][:2] == ["default", "Active"]
    assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"


def test_events_are_one_resource_in_two_groups(apiserver: ApiServerProcess) -> None:
    body = {
        "metadata": {"name": "e1"},
        "regarding": {"kind": "Pod", "name": "p", "namespace": "default"},
        "note": "hello",
        "reason": "Test",
        "type": "Normal",
        "action": "Testing",
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "example.dev/x",
        "reportingInstance": "x-1",
    }
    created = apiserver.request("POST", "/apis/events.k8s.io/v1/namespaces/default/events", body)
    assert created.status == 201, created.body
    core = apiserver.request("GET", "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dp").body
    assert core["items"][0]["message"] == "hello"
    assert core["items"][0]["reportingComponent"] == "example.dev/x"


def test_discovery_is_the_same_aggregated_and_apart(apiserver: ApiServerProcess) -> None:
    accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    whole = apiserver.request("GET", "/apis", accept=accept).body
    apart = apiserver.request("GET", "/apis").body
    assert [item["metadata"]["name"] for item in whole["items"]] == [item["name"] for item in apart["groups"]]
    for group in whole["items"]:
        for version in group["versions"]:
            path = f"/apis/{group['metadata']['name']}/{version['version']}"
            listed = apiserver.request("GET", path).body["resources"]
            assert {item["resource"] for item in version["resources"]} == {
                item["name"] for item in listed if "/" not in item["name"]
            }


def test_a_terminating_namespace_takes_nothing_new_and_goes_when_finalized(apiserver: ApiServerProcess) -> None:
    apiserver.request("POST", "/api/v1/namespaces", {"metadata": {"name": "going"}})
    assert apiserver.request("GET", "/api/v1/namespaces/going/serviceaccounts/default").status == 200
    deleted = apiserver.request("DELETE", "/api/v1/namespaces/going").body
    assert deleted["status"]["phase"] == "Terminating"
    late = ("POST", "/api/v1/namespaces/going/configmaps?dryRun=All", config_map("late"))
    refused = eventually(lambda: (answer := apiserver.request(*late)).status == 403 and answer)
    assert refused.body["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    body = {**deleted, "spec": {}}
    assert apiserver.request("PUT", "/api/v1/namespaces/going/finalize", body).status == 200
    assert apiserver.request("GET", "/api/v1/namespaces/going").status == 404
    assert apiserver.request("DELETE", "/api/v1/namespaces/default").status == 403


def test_a_body_that_is_not_json_is_a_bad_request(apiserver: ApiServerProcess) -> None:
    answer = apiserver.request("POST", CONFIG_MAPS, b"{")
    assert (answer.status, answer.body["reason"]) == (400, "BadRequest")
    assert json.loads(answer.raw)["kind"] == "Status"
    wrong = apiserver.request("POST", CONFIG_MAPS, {**config_map("t"), "data": {"a": 1}})
    assert wrong.status == 400
    assert "cannot unmarshal number into Go struct field" in wrong.body["message"]


def test_an_object_that_etcd_would_refuse_is_refused(apiserver: ApiServerProcess) -> None:
    path = "/api/v1/namespaces/default/events"
    body = {
        "metadata": {"name": "huge"},
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "message": "x" * 2_000_000,
    }
    answer = apiserver.request("POST", path, body)
    assert (answer.status, answer.body["message"]) == (500, "etcdserver: request is too large")
    too_big = apiserver.request("POST", path, {**body, "message": "x" * 4_000_000})
    assert (too_big.status, too_big.body["reason"]) == (413, "RequestEntityTooLarge")
