"""What the operator may not do, and CRDs of another version, are said where people look, until they are mended."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from trireme.resources import all_kinds
from trireme.resources.crdgen import SCHEMA_DIGEST, crd
from trireme_operator import permissions
from trireme_operator.apply.api import ApiError
from trireme_operator.permissions import Permission
from trireme_operator.selfcheck import SelfCheck

RULES = Path(__file__).parents[3] / "charts/trireme/files/operator-rules.yaml"
LIST_PODS, NODES = Permission("", "pods", "list"), Permission("", "nodes", "watch")


class Cluster:
    """An API server that knows who may do what."""

    def __init__(self) -> None:
        self.denied: set[tuple[Permission, str]] = set()
        self.crds = {manifest["metadata"]["name"]: manifest for manifest in map(crd, all_kinds())}
        self.crd_status = 200
        self.down = False

    async def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        if self.down:
            raise ApiError(0, "ClientError", "no answer")
        wanted = body["spec"]["resourceAttributes"]
        resource = "/".join(filter(None, (wanted["resource"], wanted.get("subresource"))))
        asked = Permission(wanted.get("group", ""), resource, wanted["verb"], wanted.get("name", ""))
        return {"status": {"allowed": (asked, wanted.get("namespace", "")) not in self.denied}}

    async def get(self, path: str) -> dict[str, Any]:
        if self.down or self.crd_status != 200:
            raise ApiError(0 if self.down else self.crd_status, "Refused", "")
        return self.crds[path.rpartition("/")[2]]


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def check(
    cluster: Cluster, *namespaces: str, on_change: Callable[[], None] = lambda: None, may_lack_nodes: bool = False
) -> SelfCheck:
    api: Any = cluster
    return SelfCheck(api, namespaces, "trireme-system", on_change, may_lack_nodes=may_lack_nodes)


def rules(section: str) -> set[Permission]:
    found = yaml.safe_load(RULES.read_text())[section]
    return {
        Permission(group, resource, verb, name)
        for rule in found
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


def test_what_is_asked_for_is_what_the_charts_rules_give() -> None:
    assert permissions.namespaced() == rules("namespaced")
    assert permissions.clusterwide() == rules("nodes")
    assert permissions.leader_election() == rules("leaderElection")


async def test_with_everything_there_is_nothing_to_say(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = check(cluster)
    await found.look()
    assert (found.missing, found.problem(), caplog.text) == ({}, "", "")
    assert set(found.mismatched.values()) == {False}
    assert len(found.mismatched) == 4


async def test_a_missing_permission_is_said_once_and_so_is_its_return(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    changes: list[int] = []
    found = check(cluster, on_change=lambda: changes.append(1))
    cluster.denied.add((LIST_PODS, ""))
    await found.look()
    await found.look()
    assert caplog.text.count("missing permission: list pods (in the whole cluster)") == 1
    assert found.problem() == "missing permission: list pods"
    assert not found.may("", "pods", "list", "watch")
    assert found.may("", "pods", "watch")
    cluster.denied.clear()
    await found.look()
    assert (found.problem(), found.may("", "pods", "list")) == ("", True)
    assert "permission is there now: list pods" in caplog.text
    assert len(changes) == 2


async def test_in_some_namespaces_it_is_said_where(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    found = check(cluster, "a", "b")
    cluster.denied.add((LIST_PODS, "b"))
    await found.look()
    assert found.missing == {LIST_PODS: ["b"]}
    assert "missing permission: list pods (in b)" in caplog.text


async def test_an_operator_of_some_namespaces_may_be_without_nodes_and_is_ready(cluster: Cluster) -> None:
    cluster.denied.add((NODES, ""))
    namespaced, whole, told = check(cluster, "a"), check(cluster), check(cluster, may_lack_nodes=True)
    for found in (namespaced, whole, told):
        await found.look()
        assert found.missing == {NODES: [""]}
    assert (namespaced.problem(), whole.problem()) == ("", "missing permission: watch nodes")
    assert told.problem() == "", "--may-lack-nodes"
    cluster.denied.add((LIST_PODS, ""))
    await told.look()
    assert told.problem() == "missing permission: list pods"


async def test_a_crd_of_another_version_is_told_until_it_is_replaced(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    found, old = check(cluster), crd(all_kinds()[0])
    del old["metadata"]["annotations"]
    cluster.crds["pretrainjobs.trireme.dev"] = old
    await found.look()
    await found.look()
    assert caplog.text.count("CRD pretrainjobs.trireme.dev is of another version") == 1
    assert found.problem() == "CRDs of another version: pretrainjobs.trireme.dev"
    cluster.crds["pretrainjobs.trireme.dev"] = crd(all_kinds()[0])
    await found.look()
    assert found.problem() == ""


async def test_crds_that_may_not_be_read_are_unknown_and_not_of_another_version(cluster: Cluster) -> None:
    cluster.crd_status = 403
    found = check(cluster)
    await found.look()
    assert found.mismatched == {}
    assert found.problem() == ""


async def test_crds_that_may_not_be_read_are_not_asked_for_again_until_they_may(cluster: Cluster) -> None:
    found, refusals = check(cluster), 0
    read_crds = {(p, "") for p in permissions.clusterwide() if p.resource == permissions.CRDS}
    cluster.denied |= read_crds
    cluster.crd_status = 403
    original = cluster.get

    async def get(path: str) -> dict[str, Any]:
        nonlocal refusals
        refusals += cluster.crd_status == 403
        return await original(path)

    cluster.get = get  # type: ignore[method-assign]
    for _ in range(3):
        await found.look()
    assert refusals == 4, "each once: every refusal has it look again"
    cluster.denied.clear()
    cluster.crd_status = 200
    await found.look()
    await found.look()
    assert set(found.mismatched.values()) == {False}


async def test_an_outage_changes_nothing_of_what_is_known(cluster: Cluster) -> None:
    found = check(cluster)
    cluster.denied.add((LIST_PODS, ""))
    await found.look()
    cluster.down = True
    await found.look()
    assert found.missing == {LIST_PODS: [""]}
    assert set(found.mismatched.values()) == {False}


async def test_a_refusal_has_it_look_again_at_once(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    found = check(cluster)
    looked = asyncio.Event()
    original = found.look

    async def look() -> None:
        await original()
        looked.set()

    monkeypatch.setattr(found, "look", look)
    task = asyncio.create_task(found.run())
    await asyncio.wait_for(looked.wait(), 2)
    looked.clear()
    cluster.denied.add((LIST_PODS, ""))
    found.wake()
    await asyncio.wait_for(looked.wait(), 5)
    assert found.problem() == "missing permission: list pods"
    task.cancel()


@pytest.mark.parametrize("info", all_kinds(), ids=lambda info: info.kind)
def test_a_crds_digest_follows_its_schema(info: Any) -> None:
    first, second = crd(info), crd(info)
    assert first["metadata"]["annotations"] == second["metadata"]["annotations"]
    assert first["metadata"]["annotations"][SCHEMA_DIGEST].startswith("sha256:")
