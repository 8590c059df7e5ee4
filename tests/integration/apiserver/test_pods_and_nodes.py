"""Pods and nodes: defaults, immutability, binding, graceful deletion, eviction, logs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from conftest_apiserver import ApiServerProcess, eventually
from trireme_local.node.kubelet_server import serving_certificate

PODS = "/api/v1/namespaces/default/pods"
MERGE = "application/merge-patch+json"


class Kubelet(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"{self.path}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def node(apiserver: ApiServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    kubelet = ThreadingHTTPServer(("127.0.0.1", 0), Kubelet)
    context = serving_certificate(tmp_path_factory.mktemp("kubelet"), "n1", "127.0.0.1")
    kubelet.socket = context.wrap_socket(kubelet.socket, server_side=True)
    threading.Thread(target=kubelet.serve_forever, daemon=True).start()
    body = {
        "metadata": {"name": "n1"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet.server_port}},
            "capacity": {"cpu": "2"},
        },
    }
    created = apiserver.request("POST", "/api/v1/nodes", body)
    assert created.status == 201
    assert created.body["spec"]["taints"] == [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]
    assert created.body["status"]["allocatable"] == {"cpu": "2"}
    yield "n1"
    kubelet.shutdown()


def pod(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "img:1"}], **spec}}


def create(server: ApiServerProcess, name: str, **spec: Any) -> dict[str, Any]:
    answer = server.request("POST", PODS, pod(name, **spec))
    assert answer.status == 201, answer.body
    body: dict[str, Any] = answer.body
    return body


def bind(server: ApiServerProcess, name: str, node: str) -> int:
    body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"kind": "Node", "name": node}}
    return server.request("POST", f"{PODS}/{name}/binding", body).status


def test_a_pod_is_defaulted_as_a_real_server_does(apiserver: ApiServerProcess) -> None:
    spec = create(apiserver, "defaults")["spec"]
    container = spec["containers"][0]
    assert container["imagePullPolicy"] == "IfNotPresent"
    assert container["terminationMessagePath"] == "/dev/termination-log"
    assert container["resources"] == {}
    assert (spec["restartPolicy"], spec["dnsPolicy"], spec["terminationGracePeriodSeconds"]) == (
        "Always",
        "ClusterFirst",
        30,
    )
    assert spec["serviceAccountName"] == "default"
    assert spec["securityContext"] == {}
    assert {item["key"] for item in spec["tolerations"]} == {
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    }
    assert container["volumeMounts"][0]["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount"
    bare = create(apiserver, "bare", automountServiceAccountToken=False)
    assert "volumes" not in bare["spec"]
    assert (bare["status"]["phase"], bare["status"]["qosClass"]) == ("Pending", "BestEffort")


def container(**more: Any) -> dict[str, Any]:
    return {"containers": [{"name": "c", "image": "x", **more}]}


REQUIRED, PREFERRED = (f"{how}DuringSchedulingIgnoredDuringExecution" for how in ("required", "preferred"))
POD_TERM = {"labelSelector": {"matchLabels": {"a": "b"}}, "topologyKey": "kubernetes.io/hostname"}
SPREAD = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}


def near(kind: str, how: str, *terms: dict[str, Any]) -> dict[str, Any]:
    return {"affinity": {kind: {how: list(terms)}}}


def on_nodes(what: str, **requirement: Any) -> dict[str, Any]:
    return {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{what: [requirement]}]}}}}


def at_node(rest: str) -> str:
    return f"spec.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms[0].{rest}"


def from_field(path: str) -> dict[str, Any]:
    return {"name": "A", "valueFrom": {"fieldRef": {"fieldPath": path}}}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"containers": []}, "spec.containers"),
        (container(name="UP"), "spec.containers[0].name"),
        (container(image=""), "spec.containers[0].image"),
        ({"restartPolicy": "Sometimes"}, "spec.restartPolicy"),
        ({"nodeSelector": {"a b": "c"}}, "spec.nodeSelector"),
        ({"tolerations": [{"operator": "Equal"}]}, "spec.tolerations[0].operator"),
        ({"volumes": [{"name": "v", "secret": {}}]}, "spec.volumes[0].secret.secretName"),
        (container(volumeMounts=[{"name": "no", "mountPath": "/x"}]), "spec.containers[0].volumeMounts[0].name"),
        (container(env=[{**from_field("metadata.name"), "value": "b"}]), "spec.containers[0].env[0].valueFrom"),
        (container(env=[from_field("spec.nope")]), "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath"),
        (
            container(resources={"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}),
            "spec.containers[0].resources.requests",
        ),
        (container(resources={"requests": {"nvidia.com/gpu": "1"}}), "spec.containers[0].resources.limits"),
        (near("podAntiAffinity", REQUIRED, {}), f"spec.affinity.podAntiAffinity.{REQUIRED}[0].topologyKey"),
        (
            near("podAffinity", PREFERRED, {"weight": 101, "podAffinityTerm": POD_TERM}),
            f"spec.affinity.podAffinity.{PREFERRED}[0].weight",
        ),
        (
            near("podAffinity", REQUIRED, {**POD_TERM, "labelSelector": {"matchExpressions": [{"key": "a"}]}}),
            f"spec.affinity.podAffinity.{REQUIRED}[0].labelSelector.matchExpressions[0].operator",
        ),
        ({"affinity": {"nodeAffinity": {REQUIRED: {}}}}, f"spec.affinity.nodeAffinity.{REQUIRED}.nodeSelectorTerms"),
        (on_nodes("matchExpressions", operator="Exists"), at_node("matchExpressions[0].key")),
        (on_nodes("matchExpressions", key="a", operator="Near"), at_node("matchExpressions[0].operator")),
        (on_nodes("matchExpressions", key="a", operator="In"), at_node("matchExpressions[0].values")),
        (
            on_nodes("matchExpressions", key="a", operator="Exists", values=["b"]),
            at_node("matchExpressions[0].values"),
        ),
        (
            on_nodes("matchExpressions", key="a", operator="Gt", values=["1", "2"]),
            at_node("matchExpressions[0].values"),
        ),
        (on_nodes("matchFields", key="spec.x", operator="In", values=["n"]), at_node("matchFields[0].key")),
        (
            on_nodes("matchFields", key="metadata.name", operator="In", values=["n", "m"]),
            at_node("matchFields[0].values"),
        ),
        (
            {"topologySpreadConstraints": [{**SPREAD, "topologyKey": ""}]},
            "spec.topologySpreadConstraints[0].topologyKey",
        ),
        ({"topologySpreadConstraints": [{**SPREAD, "maxSkew": 0}]}, "spec.topologySpreadConstraints[0].maxSkew"),
        (
            {"topologySpreadConstraints": [{**SPREAD, "whenUnsatisfiable": "Never"}]},
            "spec.topologySpreadConstraints[0].whenUnsatisfiable",
        ),
        ({"securityContext": {"runAsUser": -1}}, "spec.securityContext.runAsUser"),
        ({"securityContext": {"supplementalGroups": [2**31]}}, "spec.securityContext.supplementalGroups[0]"),
        ({"securityContext": {"seccompProfile": {"type": "Some"}}}, "spec.securityContext.seccompProfile.type"),
        (container(securityContext={"runAsGroup": -1}), "spec.containers[0].securityContext.runAsGroup"),
    ],
)
def test_a_bad_pod_is_refused_with_its_field(apiserver: ApiServerProcess, change: dict[str, Any], field: str) -> None:
    answer = apiserver.request("POST", PODS, pod("bad", **change))
    assert answer.status == 422
    assert field in [cause["field"] for cause in answer.body["details"]["causes"]]


def test_a_pod_that_says_much_about_its_place_is_taken(apiserver: ApiServerProcess) -> None:
    weighted = {"weight": 100, "podAffinityTerm": {**POD_TERM, "namespaceSelector": {}}}
    spec = {
        "affinity": {
            **on_nodes("matchFields", key="metadata.name", operator="NotIn", values=["n.1"])["affinity"],
            "podAntiAffinity": {REQUIRED: [POD_TERM], PREFERRED: [weighted]},
        },
        "topologySpreadConstraints": [SPREAD, {**SPREAD, "whenUnsatisfiable": "ScheduleAnyway"}],
        "securityContext": {"runAsUser": 0, "fsGroup": 2**31 - 1, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    created = create(apiserver, "placed", **spec)["spec"]
    assert created["affinity"] == spec["affinity"]
    soft = create(apiserver, "softly", **near("nodeAffinity", PREFERRED, {"weight": 1}))["spec"]["affinity"]
    assert soft["nodeAffinity"][PREFERRED] == [{"weight": 1, "preference": {}}]


def test_a_running_pods_spec_is_immutable_but_its_image(apiserver: ApiServerProcess) -> None:
    created = create(apiserver, "fixed")
    created["spec"]["containers"][0]["image"] = "img:2"
    assert apiserver.request("PUT", f"{PODS}/fixed", created).status == 200
    answer = apiserver.request("PATCH", f"{PODS}/fixed", {"spec": {"hostname": "x"}}, content_type=MERGE)
    assert answer.status == 422
    assert "pod updates may not change fields other than" in answer.body["message"]


def test_status_and_spec_are_written_apart(apiserver: ApiServerProcess) -> None:
    create(apiserver, "apart")
    body = {"spec": {"nodeName": "x"}, "status": {"phase": "Running"}}
    status = apiserver.request("PATCH", f"{PODS}/apart/status", body, content_type=MERGE).body
    assert status["status"]["phase"] == "Running"
    assert "nodeName" not in status["spec"]
    main = apiserver.request(
        "PATCH",
        f"{PODS}/apart",
        {"metadata": {"labels": {"a": "b"}}, "status": {"phase": "Failed"}},
        content_type=MERGE,
    ).body
    assert main["status"]["phase"] == "Running"


def test_a_pod_is_bound_once(apiserver: ApiServerProcess, node: str) -> None:
    create(apiserver, "bound")
    assert bind(apiserver, "bound", node) == 201
    found = apiserver.request("GET", f"{PODS}/bound").body
    assert found["spec"]["nodeName"] == node
    assert found["status"]["conditions"][0]["type"] == "PodScheduled"
    assert bind(apiserver, "bound", node) == 409
    listed = apiserver.request("GET", f"/api/v1/pods?fieldSelector=spec.nodeName%3D{node}").body["items"]
    assert [item["metadata"]["name"] for item in listed] == ["bound"]


def test_deleting_a_bound_pod_waits_for_its_node(apiserver: ApiServerProcess, node: str) -> None:
    create(apiserver, "graceful")
    bind(apiserver, "graceful", node)
    deleted = apiserver.request("DELETE", f"{PODS}/graceful").body
    assert deleted["metadata"]["deletionGracePeriodSeconds"] == 30
    shorter = apiserver.request("DELETE", f"{PODS}/graceful", {"gracePeriodSeconds": 5}).body
    assert shorter["metadata"]["deletionGracePeriodSeconds"] == 5
    longer = apiserver.request("DELETE", f"{PODS}/graceful", {"gracePeriodSeconds": 60}).body
    assert longer["metadata"]["deletionGracePeriodSeconds"] == 5
    assert apiserver.request("DELETE", f"{PODS}/graceful", {"gracePeriodSeconds": 0}).status == 200
    assert apiserver.request("GET", f"{PODS}/graceful").status == 404
    create(apiserver, "unbound")
    apiserver.request("DELETE", f"{PODS}/unbound")
    assert apiserver.request("GET", f"{PODS}/unbound").status == 404


def test_logs_come_from_the_node(apiserver: ApiServerProcess, node: str) -> None:
    create(apiserver, "talks")
    assert apiserver.request("GET", f"{PODS}/talks/log").raw == b""
    bind(apiserver, "talks", node)
    answer = apiserver.request("GET", f"{PODS}/talks/log?tailLines=3&container=c")
    path, _, query = answer.raw.decode().strip().partition("?")
    assert path == "/containerLogs/default/talks/c"
    assert "tailLines=3" in query.split("&")
    wrong = apiserver.request("GET", f"{PODS}/talks/log?container=x")
    assert (wrong.status, wrong.body["message"]) == (400, "container x is not valid for pod talks")


def test_an_eviction_respects_a_disruption_budget(apiserver: ApiServerProcess, node: str) -> None:
    body = pod("kept")
    body["metadata"]["labels"] = {"app": "kept"}
    apiserver.request("POST", PODS, body)
    bind(apiserver, "kept", node)
    running = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    apiserver.request("PATCH", f"{PODS}/kept/status", {"status": running}, content_type=MERGE)
    budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": "kept"}}}
    assert apiserver.request("POST", budgets, {"metadata": {"name": "b"}, "spec": spec}).status == 201
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "kept"}}
    refused = apiserver.request("POST", f"{PODS}/kept/eviction", eviction)
    assert (refused.status, refused.body["reason"]) == (429, "TooManyRequests")
    status = {"status": {"disruptionsAllowed": 1, "observedGeneration": 1, "currentHealthy": 2, "desiredHealthy": 1}}
    apiserver.request("PATCH", f"{budgets}/b/status", status, content_type=MERGE)
    assert apiserver.request("POST", f"{PODS}/kept/eviction", eviction).status == 201
    assert apiserver.request("GET", f"{budgets}/b").body["status"]["disruptionsAllowed"] == 0
    left = apiserver.request("GET", f"{PODS}/kept").body
    assert left["metadata"]["deletionTimestamp"]
    assert left["status"]["conditions"][-1]["type"] == "DisruptionTarget"


def test_a_pod_that_is_not_ready_may_be_evicted_where_its_budget_says_so(
    apiserver: ApiServerProcess, node: str
) -> None:
    budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
    selector = {"matchLabels": {"app": "free"}}
    spec = {"maxUnavailable": 1, "selector": selector, "unhealthyPodEvictionPolicy": "AlwaysAllow"}
    assert apiserver.request("POST", budgets, {"metadata": {"name": "free"}, "spec": spec}).status == 201
    for name, ready in (("well", "True"), ("sick", "False")):
        body = pod(name)
        body["metadata"]["labels"] = {"app": "free"}
        apiserver.request("POST", PODS, body)
        bind(apiserver, name, node)
        status = {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}}
        apiserver.request("PATCH", f"{PODS}/{name}/status", status, content_type=MERGE)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction"}
    for name, answer in (("well", 429), ("sick", 201)):
        asked = {**eviction, "metadata": {"name": name}}
        assert apiserver.request("POST", f"{PODS}/{name}/eviction", asked).status == answer


def test_priority_comes_from_the_class(apiserver: ApiServerProcess) -> None:
    path = "/apis/scheduling.k8s.io/v1/priorityclasses"
    assert apiserver.request("POST", path, {"metadata": {"name": "high"}, "value": 7}).status == 201
    important = pod("important", priorityClassName="high")
    answer = eventually(lambda: (made := apiserver.request("POST", PODS, important)).status == 201 and made)
    assert answer.body["spec"]["priority"] == 7
    assert apiserver.request("POST", PODS, pod("x", priorityClassName="none")).status == 403


def test_leases_need_a_resource_version_and_put_creates(apiserver: ApiServerProcess) -> None:
    path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1"
    body = {"metadata": {"name": "n1"}, "spec": {"holderIdentity": "n1", "leaseDurationSeconds": 40}}
    created = apiserver.request("PUT", path, body)
    assert created.status == 201
    blind = apiserver.request("PUT", path, body)
    assert blind.status == 422
    (cause,) = blind.body["details"]["causes"]
    assert cause["field"] == "metadata.resourceVersion"
    assert "must be specified for an update" in cause["message"]
    renewed = created.body
    renewed["spec"]["renewTime"] = "2026-01-01T00:00:00.000000Z"
    assert apiserver.request("PUT", path, renewed).status == 200
