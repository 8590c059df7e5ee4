"""Deployments and ReplicaSets as the API server keeps them, without a controller: defaults, rules, status and scale."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from conftest_apiserver import ApiServerProcess

DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
REPLICASETS = "/apis/apps/v1/namespaces/default/replicasets"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"
Json = dict[str, Any]


def workload(name: str, kind: str = "Deployment", **spec: Any) -> Json:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}
    body = {"selector": {"matchLabels": labels}, "template": template, **spec}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": body}


def test_defaults_are_filled_in(apiserver: ApiServerProcess) -> None:
    created = apiserver.request("POST", DEPLOYMENTS, {**workload("defaults"), "status": {"replicas": 9}})
    assert created.status == 201, created.raw
    spec = created.body["spec"]
    assert (spec["replicas"], spec["revisionHistoryLimit"], spec["progressDeadlineSeconds"]) == (1, 10, 600)
    assert spec["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"},
    }
    assert spec["template"]["spec"]["restartPolicy"] == "Always"
    assert spec["template"]["spec"]["containers"][0]["imagePullPolicy"] == "IfNotPresent"
    assert created.body["status"] == {}
    assert created.body["metadata"]["generation"] == 1
    replica_set = apiserver.request("POST", REPLICASETS, workload("defaults", "ReplicaSet", replicas=0)).body
    assert replica_set["spec"]["replicas"] == 0
    assert replica_set["status"] == {"replicas": 0}
    recreate = apiserver.request("POST", DEPLOYMENTS, workload("recreate", strategy={"type": "Recreate"})).body
    assert recreate["spec"]["strategy"] == {"type": "Recreate"}


REFUSED: list[tuple[str, Json, str]] = [
    ("Deployment", {"selector": None}, "spec.selector"),
    ("Deployment", {"selector": {}}, "spec.selector"),
    ("Deployment", {"selector": {"matchLabels": {"app": "other"}}}, "spec.template.metadata.labels"),
    ("ReplicaSet", {"selector": {"matchLabels": {"app": "other"}}}, "spec.template.metadata.labels"),
    ("ReplicaSet", {"replicas": -1}, "spec.replicas"),
    ("ReplicaSet", {"minReadySeconds": -1}, "spec.minReadySeconds"),
    ("Deployment", {"strategy": {"type": "Recreate", "rollingUpdate": {}}}, "spec.strategy.rollingUpdate"),
    ("Deployment", {"progressDeadlineSeconds": 5, "minReadySeconds": 5}, "spec.progressDeadlineSeconds"),
    ("Deployment", {"revisionHistoryLimit": -1}, "spec.revisionHistoryLimit"),
    (
        "Deployment",
        {"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}},
        "spec.strategy.rollingUpdate.maxUnavailable",
    ),
    (
        "Deployment",
        {"strategy": {"rollingUpdate": {"maxSurge": "x"}}},
        "spec.strategy.rollingUpdate.maxSurge",
    ),
    (
        "Deployment",
        {"strategy": {"rollingUpdate": {"maxUnavailable": "101%"}}},
        "spec.strategy.rollingUpdate.maxUnavailable",
    ),
]


@pytest.mark.parametrize(("kind", "spec", "field"), REFUSED)
def test_what_breaks_a_rule_is_refused_by_its_field(
    apiserver: ApiServerProcess, kind: str, spec: Json, field: str
) -> None:
    body = workload("refused", kind, **spec)
    if body["spec"]["selector"] is None:
        del body["spec"]["selector"]
    answer = apiserver.request("POST", DEPLOYMENTS if kind == "Deployment" else REPLICASETS, body)
    assert answer.status == 422, answer.raw
    assert field in [cause["field"] for cause in answer.body["details"]["causes"]]


def test_the_pod_rules_hold_for_templates(apiserver: ApiServerProcess) -> None:
    body = workload("template")
    spec = body["spec"]["template"]["spec"]
    spec |= {"restartPolicy": "Never", "activeDeadlineSeconds": 5}
    spec["containers"] = [{"name": "Not A Label", "image": "i"}, {"name": "c"}]
    answer = apiserver.request("POST", DEPLOYMENTS, body)
    fields = {cause["field"] for cause in answer.body["details"]["causes"]}
    at = "spec.template.spec"
    assert {
        f"{at}.restartPolicy",
        f"{at}.activeDeadlineSeconds",
        f"{at}.containers[0].name",
        f"{at}.containers[1].image",
    } <= fields


def test_the_generation_counts_changes_of_the_spec_and_the_selector_never_changes(apiserver: ApiServerProcess) -> None:
    apiserver.request("POST", DEPLOYMENTS, workload("counted"))
    path = f"{DEPLOYMENTS}/counted"

    def patch(body: Json, sub: str = "") -> Json:
        answer = apiserver.request("PATCH", path + sub, body, content_type=MERGE)
        assert answer.status == 200, answer.raw
        found: Json = answer.body
        return found

    assert patch({"metadata": {"labels": {"a": "1"}}})["metadata"]["generation"] == 1
    assert patch({"metadata": {"annotations": {"a": "1"}}})["metadata"]["generation"] == 2, "as on any server"
    assert patch({"spec": {"replicas": 3}})["metadata"]["generation"] == 3
    status = patch({"spec": {"replicas": 9}, "status": {"replicas": 2, "readyReplicas": 1}}, "/status")
    assert (status["metadata"]["generation"], status["spec"]["replicas"]) == (3, 3)
    assert status["status"] == {"replicas": 2, "readyReplicas": 1}
    assert patch({"status": {"replicas": 0}})["status"]["replicas"] == 2, "the status has a path of its own"
    assert patch({"status": {"readyReplicas": 0}}, "/status")["status"] == {"replicas": 2}
    other = {"spec": {"selector": {"matchLabels": {"more": "x"}}, "template": {"metadata": {"labels": {"more": "x"}}}}}
    answer = apiserver.request("PATCH", path, other, content_type=MERGE)
    assert answer.status == 422
    assert "field is immutable" in answer.body["message"]
    bad = apiserver.request("PATCH", f"{path}/status", {"status": {"readyReplicas": 5}}, content_type=MERGE)
    assert bad.status == 422


def test_containers_of_a_template_are_patched_by_name_and_strategies_replaced(apiserver: ApiServerProcess) -> None:
    apiserver.request("POST", DEPLOYMENTS, workload("patched"))
    path = f"{DEPLOYMENTS}/patched"
    body: Json = {"spec": {"template": {"spec": {"containers": [{"name": "c", "env": [{"name": "A", "value": "1"}]}]}}}}
    patched = apiserver.request("PATCH", path, body, content_type=STRATEGIC).body
    [container] = patched["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["env"]) == ("i:1", [{"name": "A", "value": "1"}])
    body = {"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}
    assert apiserver.request("PATCH", path, body, content_type=STRATEGIC).body["spec"]["strategy"] == {
        "type": "Recreate"
    }


@pytest.mark.parametrize("collection", [DEPLOYMENTS, REPLICASETS])
def test_scale_is_read_and_written_by_itself(apiserver: ApiServerProcess, collection: str) -> None:
    kind = "Deployment" if collection == DEPLOYMENTS else "ReplicaSet"
    expression = [{"key": "app", "operator": "In", "values": ["scaled", "b"]}]
    selector = {"matchLabels": {"app": "scaled"}, "matchExpressions": expression}
    apiserver.request("POST", collection, workload("scaled", kind, replicas=2, selector=selector))
    path = f"{collection}/scaled/scale"
    scale = apiserver.request("GET", path).body
    assert (scale["kind"], scale["apiVersion"]) == ("Scale", "autoscaling/v1")
    assert scale["spec"] == {"replicas": 2}
    assert scale["status"] == {"replicas": 0, "selector": "app=scaled,app in (b,scaled)"}
    changed = apiserver.request("PUT", path, {**scale, "spec": {"replicas": 3}})
    assert changed.body["spec"] == {"replicas": 3}
    stale = apiserver.request("PUT", path, {**scale, "spec": {"replicas": 4}})
    assert (stale.status, stale.body["reason"]) == (409, "Conflict")
    for media, body in ((MERGE, {"spec": {"replicas": 5}}), (STRATEGIC, {"spec": {"replicas": 6}})):
        assert apiserver.request("PATCH", path, body, content_type=media).body["spec"] == body["spec"]
    assert apiserver.request("GET", f"{collection}/scaled").body["spec"]["replicas"] == 6
    negative = apiserver.request("PATCH", path, {"spec": {"replicas": -1}}, content_type=MERGE)
    assert (negative.status, negative.body["details"]["kind"]) == (422, "Scale")
    assert apiserver.request("GET", f"{collection}/none/scale").status == 404


def test_discovery_documents_and_tables_know_the_kinds(apiserver: ApiServerProcess) -> None:
    listed = {item["name"]: item for item in apiserver.request("GET", "/apis/apps/v1").body["resources"]}
    for plural, short in (("deployments", "deploy"), ("replicasets", "rs")):
        assert listed[plural]["shortNames"] == [short]
        assert listed[plural]["categories"] == ["all"]
        assert listed[f"{plural}/scale"]["kind"] == "Scale"
        assert listed[f"{plural}/scale"]["group"] == "autoscaling"
        assert f"{plural}/status" in listed
    schemas = apiserver.request("GET", "/openapi/v3/apis/apps/v1").body["components"]["schemas"]
    assert "io.k8s.api.apps.v1.Deployment" in schemas
    apiserver.request("POST", DEPLOYMENTS, workload("shown"))
    accept = "application/json;as=Table;v=v1;g=meta.k8s.io"
    table = apiserver.request("GET", f"{DEPLOYMENTS}/shown", accept=accept).body
    names = [column["name"] for column in table["columnDefinitions"]]
    expected = ["Name", "Ready", "Up-to-date", "Available", "Age", "Containers", "Images", "Selector"]
    assert names == expected
    cells = dict(zip(names, table["rows"][0]["cells"], strict=True))
    assert (cells["Ready"], cells["Containers"], cells["Images"]) == ("0/1", "c", "i:1")
    assert cells["Selector"] == "app=shown"


def test_two_appliers_share_a_deployment(apiserver: ApiServerProcess) -> None:
    path = f"{DEPLOYMENTS}/shared"
    applied = apiserver.request("PATCH", f"{path}?fieldManager=a", workload("shared"), content_type=APPLY)
    assert applied.status == 201, applied.raw
    size = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "shared"}, "spec": {"replicas": 4}}
    # replicas was defaulted, not applied: nobody owns it yet.
    assert apiserver.request("PATCH", f"{path}?fieldManager=b", size, content_type=APPLY).body["spec"]["replicas"] == 4
    mine = workload("shared", replicas=2)
    refused = apiserver.request("PATCH", f"{path}?fieldManager=a", mine, content_type=APPLY)
    assert refused.status == 409
    assert ".spec.replicas" in refused.body["message"]
    image = copy.deepcopy(workload("shared"))
    image["spec"]["template"]["spec"]["containers"][0]["image"] = "i:2"
    changed = apiserver.request("PATCH", f"{path}?fieldManager=a", image, content_type=APPLY).body
    assert changed["spec"]["replicas"] == 4
    assert changed["spec"]["template"]["spec"]["containers"][0]["image"] == "i:2"


def test_kubectl_creates_scales_and_describes_a_deployment(apiserver: ApiServerProcess, kubectl_program: str) -> None:
    create = ("create", "deployment", "typed", "--image=i:1", "--replicas=2", "--port=80")
    assert "created" in apiserver.kubectl(*create, "--", "sleep", "1")
    assert "scaled" in apiserver.kubectl("scale", "deployment/typed", "--replicas=5", "--current-replicas=2")
    body = apiserver.request("GET", f"{DEPLOYMENTS}/typed").body
    assert body["spec"]["replicas"] == 5
    [container] = body["spec"]["template"]["spec"]["containers"]
    assert (container["command"], container["ports"][0]["containerPort"]) == (["sleep", "1"], 80)
    assert "RollingUpdateStrategy:  25% max unavailable" in apiserver.kubectl("describe", "deployment", "typed")
    assert "updated" in apiserver.kubectl("set", "image", "deployment/typed", "i=i:2")
    again = apiserver.kubectl("set", "image", "deployment/typed", "i=i:2")
    assert again == ""
    assert "FIELD: maxSurge" in apiserver.kubectl("explain", "deployment.spec.strategy.rollingUpdate.maxSurge")


SERVICES = "/api/v1/namespaces/default/services"


def test_services_keep_their_clients_by_address_where_they_say_so(apiserver: ApiServerProcess) -> None:
    def body(name: str, **spec: Any) -> Json:
        ports = [{"port": 80}]
        return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": ports, **spec}}

    sticky = apiserver.request("POST", SERVICES, body("sticky", sessionAffinity="ClientIP")).body
    assert sticky["spec"]["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 10800}}
    for spec in (
        {"sessionAffinity": "Cookie"},
        {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}},
        {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}},
        {"ports": [{"port": 80, "targetPort": "Not_A_Name"}]},
        {"ports": [{"port": 80, "targetPort": 70000}]},
    ):
        assert apiserver.request("POST", SERVICES, body("bad", **spec)).status == 422, spec
    outside = apiserver.request("POST", SERVICES, body("moved", type="ExternalName", externalName="x.example")).body
    assert "clusterIP" not in outside["spec"]
    inside = {**outside, "spec": {"type": "ClusterIP", "ports": [{"port": 80}]}}
    moved = apiserver.request("PUT", f"{SERVICES}/moved", inside)
    assert moved.status == 200, moved.raw
    assert moved.body["spec"]["clusterIP"].count(".") == 3
