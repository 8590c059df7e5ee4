"""CustomResourceDefinitions: validation, defaults, pruning, CEL, subresources, printing, deletion."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from conftest_apiserver import ApiServerProcess, establish, eventually

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
BOATS = "/apis/example.dev/v1/namespaces/default/boats"
MERGE = "application/merge-patch+json"

SPEC: dict[str, Any] = {
    "type": "object",
    "required": ["oars"],
    "x-kubernetes-validations": [
        {"rule": "self.hull == oldSelf.hull", "message": "hull is immutable", "fieldPath": ".hull"},
        {
            "rule": "!has(self.crew) || size(self.crew) <= self.oars",
            "messageExpression": "'at most ' + string(self.oars)",
        },
    ],
    "properties": {
        "oars": {"type": "integer", "minimum": 1, "maximum": 200},
        "hull": {"type": "string", "default": "oak", "enum": ["oak", "pine"]},
        "name": {"type": "string", "maxLength": 5, "pattern": "^[a-z]+$"},
        "speed": {"x-kubernetes-int-or-string": True},
        "crew": {
            "type": "array",
            "maxItems": 3,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "rank": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]},
                },
            },
        },
        "extra": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    },
}
CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "boats.example.dev"},
    "spec": {
        "group": "example.dev",
        "scope": "Namespaced",
        "names": {"plural": "boats", "kind": "Boat", "shortNames": ["bt"]},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {
                    "status": {},
                    "scale": {"specReplicasPath": ".spec.oars", "statusReplicasPath": ".status.oars"},
                },
                "additionalPrinterColumns": [{"name": "OARS", "type": "integer", "jsonPath": ".spec.oars"}],
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": SPEC,
                            "status": {"type": "object", "properties": {"oars": {"type": "integer"}}},
                        },
                    }
                },
            }
        ],
    },
}


@pytest.fixture(autouse=True)
def _definition(apiserver: ApiServerProcess) -> None:
    establish(apiserver, CRD)


def part(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with one field."""
    return {"properties": {"x": schema}, "required": [], "x-kubernetes-validations": []}


def boat(called: str, /, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "example.dev/v1", "kind": "Boat", "metadata": {"name": called}, "spec": {"oars": 2, **spec}}


def test_a_definition_is_established_after_it_is_created(apiserver: ApiServerProcess) -> None:
    crd = copy.deepcopy(CRD)
    crd["metadata"]["name"] = "skiffs.example.dev"
    crd["spec"]["names"] = {"plural": "skiffs", "kind": "Skiff"}
    created = apiserver.request("POST", CRDS, crd)
    assert created.status == 201
    assert not created.body["status"].get("conditions"), "whoever creates one has to wait for it"
    establish(apiserver, crd)
    assert apiserver.request("DELETE", f"{CRDS}/skiffs.example.dev").status == 200


def test_an_established_definition_is_discovered(apiserver: ApiServerProcess) -> None:
    status = apiserver.request("GET", f"{CRDS}/boats.example.dev").body["status"]
    assert {item["type"]: item["status"] for item in status["conditions"]} == {
        "NamesAccepted": "True",
        "Established": "True",
    }
    assert status["storedVersions"] == ["v1"]
    listed = {item["name"]: item for item in apiserver.request("GET", "/apis/example.dev/v1").body["resources"]}
    assert listed["boats"]["shortNames"] == ["bt"]
    assert set(listed) == {"boats", "boats/status", "boats/scale"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"oars": "two"}, 'spec.oars: Invalid value: "string": spec.oars in body must be of type integer: "string"'),
        ({"oars": 0}, "spec.oars: Invalid value: 0: spec.oars in body should be greater than or equal to 1"),
        pytest.param(
            {"oars": None},
            'spec.oars: Invalid value: "null": spec.oars in body must be of type integer: "null"',
            marks=pytest.mark.local_apiserver,  # a real one drops the null
        ),
        ({"hull": "tin"}, 'spec.hull: Unsupported value: "tin": supported values: "oak", "pine"'),
        ({"name": "toolong"}, "spec.name: Too long: may not be more than 5 bytes"),
        ({"name": "A"}, "spec.name: Invalid value: \"A\": spec.name in body should match '^[a-z]+$'"),
        ({"speed": 1.5}, "spec.speed: Invalid value"),
        ({"crew": [{"rank": "x"}]}, "spec.crew[0].name: Required value"),
        ({"crew": [{"name": "a"}, {"name": "a"}]}, 'spec.crew[1]: Duplicate value: {"name":"a"}'),
        ({"oars": 1, "crew": [{"name": "a"}, {"name": "b"}]}, 'spec: Invalid value: "object": at most 1'),
    ],
)
def test_a_bad_object_is_refused_in_the_servers_words(
    apiserver: ApiServerProcess, change: dict[str, Any], text: str
) -> None:
    answer = apiserver.request("POST", BOATS, boat("bad", **change))
    assert (answer.status, answer.body["reason"]) == (422, "Invalid")
    assert text in answer.body["message"]
    assert answer.body["message"].startswith('Boat.example.dev "bad" is invalid: ')


def test_defaults_are_filled_in_and_unknown_fields_pruned(apiserver: ApiServerProcess) -> None:
    body = boat("pruned", hull=None, sails=3, extra={"anything": {"goes": 1}}, speed="fast")
    answer = apiserver.request("POST", BOATS, body)
    assert answer.body["spec"] == {"oars": 2, "hull": "oak", "extra": {"anything": {"goes": 1}}, "speed": "fast"}
    assert answer.headers["Warning"] == '299 - "unknown field \\"spec.sails\\""'
    strict = apiserver.request("POST", f"{BOATS}?fieldValidation=Strict", body)
    assert (strict.status, strict.body["reason"]) == (400, "BadRequest")


def test_transition_rules_compare_with_the_old_object(apiserver: ApiServerProcess) -> None:
    apiserver.request("POST", BOATS, boat("fixed", crew=[{"name": "a", "rank": "x"}]))
    moved = apiserver.request("PATCH", f"{BOATS}/fixed", {"spec": {"hull": "pine"}}, content_type=MERGE)
    assert moved.status == 422
    (cause,) = moved.body["details"]["causes"]
    assert (cause["field"], cause["message"]) == ("spec.hull", 'Invalid value: "object": hull is immutable')
    crew = {"spec": {"crew": [{"name": "b", "rank": "new"}, {"name": "a", "rank": "y"}]}}
    ranked = apiserver.request("PATCH", f"{BOATS}/fixed", crew, content_type=MERGE)
    assert [cause["field"] for cause in ranked.body["details"]["causes"]] == ["spec.crew[1].rank"]


def test_generation_counts_changes_of_the_spec_only(apiserver: ApiServerProcess) -> None:
    created = apiserver.request("POST", BOATS, {**boat("counted"), "status": {"oars": 9}}).body
    assert created["metadata"]["generation"] == 1
    assert "status" not in created
    path = f"{BOATS}/counted"
    body = {"spec": {"oars": 7}, "metadata": {"labels": {"a": "b"}}, "status": {"oars": 1}}
    status = apiserver.request("PATCH", f"{path}/status", body, content_type=MERGE).body
    assert (status["metadata"]["generation"], status["spec"]["oars"], status["status"]) == (1, 2, {"oars": 1})
    assert "labels" not in status["metadata"]
    main = apiserver.request("PATCH", path, body, content_type=MERGE).body
    assert (main["metadata"]["generation"], main["spec"]["oars"]) == (2, 7)
    labelled = apiserver.request("PATCH", path, {"metadata": {"labels": {"a": "c"}}}, content_type=MERGE).body
    assert labelled["metadata"]["generation"] == 2


def test_the_scale_subresource_reads_and_writes_its_paths(apiserver: ApiServerProcess) -> None:
    apiserver.request("POST", BOATS, boat("scaled"))
    path = f"{BOATS}/scaled/scale"
    assert apiserver.request("GET", path).body["spec"] == {"replicas": 2}
    assert apiserver.request("PATCH", path, {"spec": {"replicas": 5}}, content_type=MERGE).status == 200
    assert apiserver.request("GET", f"{BOATS}/scaled").body["spec"]["oars"] == 5
    assert apiserver.request("PATCH", path, {"spec": {"replicas": 900}}, content_type=MERGE).status == 422


@pytest.mark.parametrize(
    ("scale", "field"),
    [
        ({"statusReplicasPath": ".status.oars"}, "specReplicasPath"),
        ({"specReplicasPath": ".oars", "statusReplicasPath": ".status.oars"}, "specReplicasPath"),
        ({"specReplicasPath": ".spec.oars", "statusReplicasPath": ".spec.oars"}, "statusReplicasPath"),
        ({"specReplicasPath": ".spec.crew[0].oars", "statusReplicasPath": ".status.oars"}, "specReplicasPath"),
    ],
)
def test_a_scale_has_to_say_where_its_numbers_are(
    apiserver: ApiServerProcess, scale: dict[str, str], field: str
) -> None:
    crd = copy.deepcopy(CRD)
    crd["metadata"]["name"] = "ships.example.dev"
    crd["spec"]["names"] = {"plural": "ships", "kind": "Ship"}
    crd["spec"]["versions"][0]["subresources"]["scale"] = scale
    answer = apiserver.request("POST", CRDS, crd)
    assert answer.status == 422
    assert f"subresources.scale.{field}" in answer.body["message"]


def test_kubectl_scales_a_custom_resource_and_its_selector_is_told(
    apiserver: ApiServerProcess, kubectl_program: str
) -> None:
    crd = copy.deepcopy(CRD)
    crd["metadata"]["name"] = "fleets.example.dev"
    crd["spec"]["names"] = {"plural": "fleets", "kind": "Fleet"}
    version = crd["spec"]["versions"][0]
    version["subresources"]["scale"] |= {"specReplicasPath": ".spec.ships", "labelSelectorPath": ".status.selector"}
    version["schema"]["openAPIV3Schema"]["properties"] = {
        "spec": {"type": "object", "properties": {"ships": {"type": "integer"}}},
        "status": {"type": "object", "properties": {"oars": {"type": "integer"}, "selector": {"type": "string"}}},
    }
    establish(apiserver, crd)
    fleets = BOATS.replace("boats", "fleets")
    body: dict[str, Any] = {"apiVersion": "example.dev/v1", "kind": "Fleet", "metadata": {"name": "f"}, "spec": {}}
    assert apiserver.request("POST", fleets, body).status == 201
    unset = apiserver.request("GET", f"{fleets}/f/scale")
    assert (unset.status, unset.body["reason"]) == (500, "InternalError")
    apiserver.request("PATCH", f"{fleets}/f", {"spec": {"ships": 1}}, content_type=MERGE)
    status = {"status": {"oars": 1, "selector": "app=f"}}
    apiserver.request("PATCH", f"{fleets}/f/status", status, content_type=MERGE)
    assert "scaled" in apiserver.kubectl("scale", "fleets.example.dev/f", "--replicas=3", "--current-replicas=1")
    scale = apiserver.request("GET", f"{fleets}/f/scale").body
    assert (scale["spec"], scale["status"]) == ({"replicas": 3}, {"replicas": 1, "selector": "app=f"})


def test_an_update_needs_a_resource_version(apiserver: ApiServerProcess) -> None:
    apiserver.request("POST", BOATS, boat("blind"))
    answer = apiserver.request("PUT", f"{BOATS}/blind", boat("blind", oars=3))
    assert answer.status == 422
    assert "must be specified for an update" in answer.body["message"]
    assert (
        apiserver.request("PATCH", f"{BOATS}/blind", {}, content_type="application/strategic-merge-patch+json").status
        == 415
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x-kubernetes-validations": [{"rule": "self.masts > 1"}]}, "undefined field 'masts'"),
        ({"x-kubernetes-validations": [{"rule": "self.oars >"}]}, "compilation failed"),
        pytest.param(
            {"x-kubernetes-validations": [{"rule": "quantity(self.name) > 1"}]},
            "undeclared reference to 'quantity'",
            marks=pytest.mark.local_apiserver,  # a real one has that library
        ),
        ({"properties": {"x": {}}}, "must not be empty for specified object fields"),
        ({"properties": {"x": {"type": "array"}}}, "Required value: must be specified"),
        ({"properties": {"x": {"type": "text"}}}, "Unsupported value"),
        (part({"type": "integer", "default": "two"}), "[x].default: Invalid value"),
        (part({"type": "object", "default": {"y": 1}, "properties": {}}), "must not have unknown fields"),
        (
            part(
                {
                    "type": "object",
                    "default": {},  # without y: a default is not completed with those below it
                    "properties": {"y": {"type": "integer", "default": 1}},
                    "x-kubernetes-validations": [{"rule": "self.y == 1", "message": "y is one"}],
                }
            ),
            "no such key: y evaluating rule: y is one",
        ),
    ],
)
def test_a_definition_that_cannot_work_is_refused(
    apiserver: ApiServerProcess, change: dict[str, Any], text: str
) -> None:
    crd = copy.deepcopy(CRD)
    crd["metadata"]["name"] = "ships.example.dev"
    crd["spec"]["names"] = {"plural": "ships", "kind": "Ship"}
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = {**SPEC, **change}
    answer = apiserver.request("POST", CRDS, crd)
    assert answer.status == 422
    assert text in answer.body["message"]


def test_deleting_a_definition_deletes_its_objects_first(apiserver: ApiServerProcess) -> None:
    crd = copy.deepcopy(CRD)
    crd["metadata"]["name"] = "rafts.example.dev"
    crd["spec"]["names"] = {"plural": "rafts", "kind": "Raft"}
    establish(apiserver, crd)
    rafts = BOATS.replace("boats", "rafts")
    body = {**boat("held"), "kind": "Raft"}
    body["metadata"]["finalizers"] = ["example.dev/x"]
    assert apiserver.request("POST", rafts, body).status == 201
    apiserver.request("DELETE", f"{CRDS}/rafts.example.dev")
    eventually(lambda: apiserver.request("GET", f"{rafts}/held").body["metadata"].get("deletionTimestamp"))
    new = {**boat("new"), "kind": "Raft"}
    eventually(lambda: apiserver.request("POST", f"{rafts}?dryRun=All", new).status == 405)
    apiserver.request("PATCH", f"{rafts}/held", {"metadata": {"finalizers": None}}, content_type=MERGE)
    eventually(lambda: apiserver.request("GET", f"{CRDS}/rafts.example.dev").status == 404)
    eventually(lambda: apiserver.request("GET", rafts).status == 404)


def test_stored_objects_are_read_by_the_schema_of_now(apiserver: ApiServerProcess) -> None:
    apiserver.request("POST", BOATS, boat("older", speed="fast"))
    before = apiserver.request("GET", f"{BOATS}/older").body
    crd = apiserver.request("GET", f"{CRDS}/boats.example.dev").body
    properties = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    properties["flag"] = {"type": "string", "default": "red"}
    del properties["speed"]
    assert apiserver.request("PUT", f"{CRDS}/boats.example.dev", crd).status == 200
    wanted = {"oars": 2, "hull": "oak", "flag": "red"}
    eventually(lambda: apiserver.request("GET", f"{BOATS}/older").body["spec"] == wanted)
    after = apiserver.request("GET", f"{BOATS}/older").body
    assert after["metadata"] == before["metadata"]


def test_openapi_publishes_the_schema(apiserver: ApiServerProcess) -> None:
    def index() -> dict[str, Any]:
        paths: dict[str, Any] = apiserver.request("GET", "/openapi/v3").body["paths"]
        return paths

    eventually(lambda: "apis/example.dev/v1" in index())
    document = apiserver.request("GET", index()["apis/example.dev/v1"]["serverRelativeURL"]).body
    schema = document["components"]["schemas"]["dev.example.v1.Boat"]
    assert schema["properties"]["spec"]["properties"]["hull"]["default"] == "oak"
    assert schema["x-kubernetes-group-version-kind"] == [{"group": "example.dev", "kind": "Boat", "version": "v1"}]
    swagger = ("GET", "/openapi/v2")
    eventually(lambda: "dev.example.v1.Boat" in apiserver.request(*swagger).body["definitions"])
