"""Authentication and RBAC: service-account tokens, roles, escalation, nodes, reviews."""

from __future__ import annotations

from typing import Any

import pytest

from conftest_apiserver import ApiServerProcess, eventually
from trireme_local.apiserver import identities, kubeconfig

RBAC = "/apis/rbac.authorization.k8s.io/v1"
MERGE = "application/merge-patch+json"


@pytest.fixture(scope="module")
def token(apiserver: ApiServerProcess) -> str:
    accounts = "/api/v1/namespaces/default/serviceaccounts"
    assert apiserver.request("POST", accounts, {"metadata": {"name": "robot"}}).status == 201
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}}
    answer = apiserver.request("POST", f"{accounts}/robot/token", body)
    assert answer.status == 201
    return str(answer.body["status"]["token"])


def role(server: ApiServerProcess, name: str, *rules: dict[str, Any], namespace: str = "default") -> None:
    body = {"metadata": {"name": name}, "rules": list(rules)}
    assert server.request("POST", f"{RBAC}/namespaces/{namespace}/roles", body).status == 201
    binding = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "robot", "namespace": "default"}],
    }
    assert server.request("POST", f"{RBAC}/namespaces/{namespace}/rolebindings", binding).status == 201


def test_a_service_account_may_do_what_its_roles_say_and_nothing_else(apiserver: ApiServerProcess, token: str) -> None:
    path = "/api/v1/namespaces/default/configmaps"
    denied = apiserver.request("GET", path, token=token)
    assert (denied.status, denied.body["reason"]) == (403, "Forbidden")
    assert denied.body["message"] == (
        'configmaps is forbidden: User "system:serviceaccount:default:robot" cannot list resource "configmaps" '
        'in API group "" in the namespace "default"'
    )
    role(
        apiserver,
        "reader",
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "watch"]},
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"], "resourceNames": ["one"]},
        {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]},
    )
    eventually(lambda: apiserver.request("GET", path, token=token).status == 200)
    assert apiserver.request("GET", f"{path}/one", token=token).status == 404
    assert apiserver.request("GET", f"{path}/two", token=token).status == 403
    assert apiserver.request("POST", path, {"metadata": {"name": "x"}}, token=token).status == 403
    assert apiserver.request("GET", "/api/v1/configmaps", token=token).status == 403
    assert apiserver.request("GET", "/api/v1/namespaces/kube-system/configmaps", token=token).status == 403
    pod = "/api/v1/namespaces/default/pods/p"
    assert apiserver.request("PATCH", f"{pod}/status", {}, token=token, content_type=MERGE).status == 404
    assert apiserver.request("PATCH", pod, {}, token=token, content_type=MERGE).status == 403
    assert apiserver.request("GET", "/apis", token=token).status == 200


def test_a_token_ends_with_its_account(apiserver: ApiServerProcess) -> None:
    accounts = "/api/v1/namespaces/default/serviceaccounts"
    apiserver.request("POST", accounts, {"metadata": {"name": "brief"}})
    answer = apiserver.request("POST", f"{accounts}/brief/token", {"spec": {}})
    brief = answer.body["status"]["token"]
    assert apiserver.request("GET", "/version", token=brief).status == 200
    apiserver.request("DELETE", f"{accounts}/brief")
    # A real server remembers for ten seconds that a token was good.
    eventually(lambda: apiserver.request("GET", "/version", token=brief).status == 401)
    assert apiserver.request("GET", "/version", token=brief[:-4] + "AAAA").status == 401
    short = apiserver.request("POST", f"{accounts}/default/token", {"spec": {"expirationSeconds": 5}})
    assert short.status == 422


def test_nobody_grants_more_than_they_hold(apiserver: ApiServerProcess, token: str) -> None:
    role(
        apiserver, "granter", {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["create"]}
    )
    path = f"{RBAC}/namespaces/default/roles"
    rules = [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]

    def refusal() -> str:
        refused = apiserver.request("POST", path, {"metadata": {"name": "more"}, "rules": rules}, token=token)
        assert refused.status == 403
        return str(refused.body["message"])

    eventually(lambda: "attempting to grant RBAC permissions not currently held" in refusal())
    held = [{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["create"]}]
    assert apiserver.request("POST", path, {"metadata": {"name": "same"}, "rules": held}, token=token).status == 201


@pytest.mark.local_apiserver  # in a real cluster this is a controller's work
def test_aggregated_roles_follow_the_roles_that_they_select(apiserver: ApiServerProcess) -> None:
    rule = {"apiGroups": ["example.dev"], "resources": ["boats"], "verbs": ["get"]}
    labels = {"rbac.authorization.k8s.io/aggregate-to-view": "true"}
    apiserver.request(
        "POST", f"{RBAC}/clusterroles", {"metadata": {"name": "boats", "labels": labels}, "rules": [rule]}
    )
    for name in ("view", "edit", "admin"):
        assert rule in apiserver.request("GET", f"{RBAC}/clusterroles/{name}").body["rules"]
    apiserver.request("DELETE", f"{RBAC}/clusterroles/boats")
    assert rule not in apiserver.request("GET", f"{RBAC}/clusterroles/admin").body["rules"]


@pytest.mark.local_apiserver  # it takes up new tokens while it runs
def test_a_node_writes_its_own_objects_and_reads_what_its_pods_use(apiserver: ApiServerProcess) -> None:
    node = identities.issue(apiserver.data_dir, "system:node:n7", [identities.NODES_GROUP])
    assert apiserver.request("POST", "/api/v1/nodes", {"metadata": {"name": "n7"}}, token=node).status == 201
    assert apiserver.request("POST", "/api/v1/nodes", {"metadata": {"name": "n8"}}, token=node).status == 403
    secrets = "/api/v1/namespaces/default/secrets"
    for name in ("used", "unused"):
        apiserver.request("POST", secrets, {"metadata": {"name": name}})
    spec = {
        "nodeName": "n7",
        "containers": [{"name": "c", "image": "i", "envFrom": [{"secretRef": {"name": "used"}}]}],
    }
    pods = "/api/v1/namespaces/default/pods"
    assert apiserver.request("POST", pods, {"metadata": {"name": "mine"}, "spec": spec}).status == 201
    assert apiserver.request("GET", f"{secrets}/used", token=node).status == 200
    assert apiserver.request("GET", f"{secrets}/unused", token=node).status == 403
    assert apiserver.request("GET", secrets, token=node).status == 403
    status = {"status": {"phase": "Running"}}
    assert apiserver.request("PATCH", f"{pods}/mine/status", status, token=node, content_type=MERGE).status == 200
    apiserver.request("POST", pods, {"metadata": {"name": "other"}, "spec": {**spec, "nodeName": "n8"}})
    assert apiserver.request("PATCH", f"{pods}/other/status", status, token=node, content_type=MERGE).status == 403
    lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    body = {"metadata": {"name": "n7"}, "spec": {"holderIdentity": "n7"}}
    assert apiserver.request("POST", lease, body, token=node).status == 201
    assert apiserver.request("GET", f"{lease}/n8", token=node).status == 403


def test_reviews_answer_what_authorization_would(apiserver: ApiServerProcess, token: str) -> None:
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    ask = {"spec": {"resourceAttributes": {"verb": "delete", "resource": "pods", "namespace": "default"}}}
    assert apiserver.request("POST", path, ask).body["status"]["allowed"] is True
    assert apiserver.request("POST", path, ask, token=token).body["status"]["allowed"] is False
    who = apiserver.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", {}, token=token).body
    assert who["status"]["userInfo"]["username"] == "system:serviceaccount:default:robot"
    review = {"spec": {"token": token}}
    answer = apiserver.request("POST", "/apis/authentication.k8s.io/v1/tokenreviews", review).body["status"]
    assert answer["authenticated"] is True


def test_impersonation_needs_permission(apiserver: ApiServerProcess, token: str) -> None:
    headers = {"Impersonate-User": "system:serviceaccount:default:robot"}
    assert apiserver.request("GET", "/api/v1/nodes", headers=headers).status == 403
    assert apiserver.request("GET", "/version", headers={"Impersonate-User": "admin"}, token=token).status == 403


@pytest.mark.usefixtures("kubectl_program")
def test_a_written_kubeconfig_works(apiserver: ApiServerProcess, tmp_path: Any, token: str) -> None:
    path = kubeconfig.write(
        tmp_path / "robot.kubeconfig", server=apiserver.url, token=token, ca_path=apiserver.data_dir / "pki" / "ca.crt"
    )
    assert path.stat().st_mode & 0o077 == 0
    answer = apiserver.kubectl(
        "--kubeconfig", str(path), "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"
    )
    assert answer == "system:serviceaccount:default:robot"
