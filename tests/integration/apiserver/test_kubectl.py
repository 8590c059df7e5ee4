"""Plain kubectl against the local API server."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest_apiserver import ApiServerProcess, eventually

CRD_FILE = Path(__file__).parents[3] / "crds" / "trireme.dev_pretrainjobs.yaml"
pytestmark = pytest.mark.usefixtures("kubectl_program")

OBJECTS = """
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {a: b}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {containers: [{name: c, image: "img:1"}]}
"""


def test_apply_creates_then_leaves_unchanged_then_deletes(apiserver: ApiServerProcess) -> None:
    first = apiserver.kubectl("apply", "-f", "-", stdin=OBJECTS)
    assert first.splitlines() == ["configmap/settings created", "service/web created", "pod/web created"]
    second = apiserver.kubectl("apply", "-f", "-", stdin=OBJECTS)
    assert second.splitlines() == ["configmap/settings unchanged", "service/web unchanged", "pod/web unchanged"]
    assert "pod/web configured" in apiserver.kubectl("apply", "-f", "-", stdin=OBJECTS.replace("img:1", "img:2"))
    header, row = apiserver.kubectl("get", "pods", "-o", "wide").splitlines()
    assert header.split()[:5] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert row.split()[:4] == ["web", "0/1", "Pending", "0"]
    assert "Service Account:  default" in apiserver.kubectl("describe", "pod", "web")
    assert "deleted" in apiserver.kubectl("delete", "-f", "-", "--timeout=10s", stdin=OBJECTS)
    assert "No resources found" in apiserver.kubectl("get", "pods")


def test_commands_that_speak_protobuf(apiserver: ApiServerProcess) -> None:
    assert "created" in apiserver.kubectl("create", "namespace", "proto")
    assert "created" in apiserver.kubectl("create", "configmap", "c", "--from-literal=a=b", "--from-literal=empty=")
    assert apiserver.kubectl("get", "configmap", "c", "-o", "jsonpath={.data}") == '{"a":"b","empty":""}'
    assert "created" in apiserver.kubectl("create", "secret", "generic", "s", "--from-literal=a=b")
    assert apiserver.kubectl("get", "secret", "s", "-o", "jsonpath={.data.a}") == "Yg=="
    assert "created" in apiserver.kubectl("create", "service", "clusterip", "svc", "--tcp=80:8080")
    assert apiserver.kubectl("get", "svc", "svc", "-o", "jsonpath={.spec.ports[0].targetPort}") == "8080"
    assert "created" in apiserver.kubectl("create", "role", "r", "--verb=get", "--resource=pods", "--resource-name=x")
    assert apiserver.kubectl("get", "role", "r", "-o", "jsonpath={.rules[0].resourceNames}") == '["x"]'
    assert "created" in apiserver.kubectl("create", "rolebinding", "rb", "--role=r", "--serviceaccount=default:default")
    assert "created" in apiserver.kubectl("create", "pdb", "p", "--selector=a=b", "--min-available=50%")
    assert apiserver.kubectl("get", "pdb", "p", "-o", "jsonpath={.spec.minAvailable}") == "50%"
    assert "created" in apiserver.kubectl("create", "priorityclass", "pc", "--value=0")
    assert apiserver.kubectl("create", "token", "default").count(".") == 2


def test_auth_commands(apiserver: ApiServerProcess) -> None:
    assert apiserver.kubectl("auth", "can-i", "delete", "pods").strip() == "yes"
    denied = apiserver.kubectl("auth", "can-i", "delete", "pods", "--as=nobody", check=False)
    assert denied.startswith("no")
    assert "system:masters" in apiserver.kubectl("auth", "whoami")


def test_the_job_kind_is_explained_applied_listed_waited_for_and_deleted(apiserver: ApiServerProcess) -> None:
    apiserver.kubectl("apply", "-f", str(CRD_FILE))
    apiserver.kubectl("wait", "--for=condition=Established", "crd/pretrainjobs.trireme.dev", "--timeout=5s")
    explain = ("explain", "pretrainjob.spec.workers")
    eventually(lambda: "nodes\t<integer>" in apiserver.kubectl(*explain, check=False))
    example = CRD_FILE.parents[1] / "examples" / "pretrain.yaml"
    assert "created" in apiserver.kubectl("apply", "-f", str(example))
    header = apiserver.kubectl("get", "ptj", "-o", "wide").splitlines()[0].split()
    assert header == ["NAME", "STATE", "STEP", "PROGRESS", "LOSS", "NODES", "RESTARTS", "MFU", "LAST-CKPT", "AGE"]
    name = apiserver.kubectl("get", "ptj", "-o", "name").strip()
    status = '{"status":{"conditions":[{"type":"Succeeded","status":"True","reason":"Done","message":"",\
"lastTransitionTime":"2026-01-01T00:00:00Z"}]}}'
    apiserver.kubectl("patch", name, "--subresource=status", "--type=merge", "-p", status)
    assert "condition met" in apiserver.kubectl("wait", name, "--for=condition=Succeeded", "--timeout=5s")
    unknown = example.read_text().replace("spec:", "spec:\n  speling: 1", 1)
    refused = apiserver.kubectl("apply", "-f", "-", stdin=unknown, check=False)
    assert 'strict decoding error: unknown field "spec.speling"' in refused
    assert "deleted" in apiserver.kubectl("delete", name, "--timeout=5s")


def test_server_side_apply_and_its_conflicts(apiserver: ApiServerProcess) -> None:
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ssa}\ndata: {a: '%s'}\n"
    apiserver.kubectl("apply", "--server-side", "-f", "-", stdin=text % 1)
    refused = apiserver.kubectl(
        "apply", "--server-side", "--field-manager=other", "-f", "-", stdin=text % 2, check=False
    )
    assert 'Apply failed with 1 conflict: conflict with "kubectl": .data.a' in refused
    forced = ("apply", "--server-side", "--field-manager=other", "--force-conflicts", "-f", "-")
    assert "serverside-applied" in apiserver.kubectl(*forced, stdin=text % 2)


def test_an_unknown_kind_is_an_explicit_error(apiserver: ApiServerProcess) -> None:
    galley = "apiVersion: nowhere.dev/v1\nkind: Galley\nmetadata: {name: g}\n"
    refused = apiserver.kubectl("apply", "-f", "-", stdin=galley, check=False)
    assert 'no matches for kind "Galley" in version "nowhere.dev/v1"' in refused
    assert "the server doesn't have a resource type" in apiserver.kubectl("get", "galleys", check=False)


@pytest.mark.local_apiserver
def test_a_kind_that_only_a_whole_cluster_has_is_an_explicit_error(apiserver: ApiServerProcess) -> None:
    stateful_set = "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: d}\n"
    refused = apiserver.kubectl("apply", "-f", "-", stdin=stateful_set, check=False)
    assert 'no matches for kind "StatefulSet" in version "apps/v1"' in refused


def test_cordon_label_annotate_and_drain_a_node(apiserver: ApiServerProcess) -> None:
    apiserver.kubectl("create", "-f", "-", stdin="apiVersion: v1\nkind: Node\nmetadata: {name: worker}\n")
    apiserver.kubectl("label", "node", "worker", "disk=fast")
    apiserver.kubectl("annotate", "node", "worker", "note=x")
    pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: drained}\n"
    pod += "spec: {nodeName: worker, terminationGracePeriodSeconds: 0, containers: [{name: c, image: i}]}\n"
    apiserver.kubectl("create", "-f", "-", stdin=pod)
    output = apiserver.kubectl("drain", "worker", "--force", "--timeout=20s")
    assert "pod/drained evicted" in output
    assert "SchedulingDisabled" in apiserver.kubectl("get", "nodes")
    apiserver.kubectl("uncordon", "worker")
    assert "disk=fast" in apiserver.kubectl("get", "node", "worker", "--show-labels")
