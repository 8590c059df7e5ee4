"""Whose containers get file systems of their own, and who is told why not."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from trireme_local import isolation
from trireme_local.cluster import LocalCluster
from trireme_local.daemons import node_command
from trireme_local.errors import ClusterError
from trireme_local.node.context import NodeContext, wants_read_only_root
from trireme_local.node.environment import PodFacts
from trireme_local.node.images import ImageTable
from trireme_local.node.namespaces import MountNamespaces, NamespacesUnavailable, choose, exec_failure
from trireme_local.node.volumes import VolumeBuilder
from trireme_local.s3 import StoreAccess
from trireme_local.state import ClusterState, NodeState

READ_ONLY = {"securityContext": {"readOnlyRootFilesystem": True}}
WRITABLE = {"securityContext": {"readOnlyRootFilesystem": False}}


def pod(*containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": list(containers), **spec}}


@pytest.mark.parametrize(
    ("manifest", "asks"),
    [
        (pod({}), False),
        (pod(WRITABLE), False),
        (pod({"securityContext": None}), False),
        (pod(READ_ONLY), True),
        (pod({}, READ_ONLY), True),
        (pod({}, initContainers=[READ_ONLY]), True),
    ],
)
def test_a_pod_asks_when_one_of_its_containers_does(manifest: dict[str, Any], asks: bool) -> None:
    assert wants_read_only_root(manifest) is asks


@pytest.mark.parametrize("works", [True, False])
@pytest.mark.parametrize("isolate_all", [True, False])
def test_only_who_asks_is_isolated_unless_all_are(works: bool, isolate_all: bool) -> None:
    found = MountNamespaces("bwrap", "nsenter", "1") if works else None
    nothing: Any = None
    node = NodeContext(
        *("n", nothing, nothing, nothing, nothing, Path("/d"), Path("/s"), "m", {}, nothing),
        namespaces=found,
        isolate_all=isolate_all,
    )
    assert node.namespaces_for(pod(READ_ONLY)) is found
    assert node.namespaces_for(pod({})) is (found if isolate_all else None)


@pytest.fixture
def without_bubblewrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATH on which neither program is."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(isolation.VARIABLE, raising=False)


@pytest.mark.usefixtures("without_bubblewrap")
def test_a_node_says_in_one_line_that_it_isolates_nobody_and_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert choose("auto") is None
    assert choose("none") is None
    off = "pods see this computer's files, and readOnlyRootFilesystem is not enforced"
    assert [record.message for record in caplog.records] == [
        f"isolation is off (bwrap is not installed): {off}",
        f"isolation is off, as asked: {off}",
    ]
    with pytest.raises(NamespacesUnavailable, match="bwrap is not installed"):
        choose("all")


def test_the_reason_is_what_bubblewrap_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2; exit 1\n")
    bwrap.chmod(0o755)
    (tmp_path / "nsenter").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NamespacesUnavailable, match="No permissions to create a new namespace"):
        MountNamespaces.probe()


@pytest.mark.usefixtures("without_bubblewrap")
def test_up_says_so_and_fails_only_where_isolation_is_asked_for(tmp_path: Path) -> None:
    said: list[str] = []
    isolation.check(None, said.append)
    assert len(said) == 1
    assert said[0].startswith("isolation is off (bwrap is not installed): ")
    isolation.check(False, said.append)
    assert len(said) == 1
    with pytest.raises(ClusterError, match="--isolate does not work here: bwrap is not installed"):
        LocalCluster(tmp_path / "c").up(nodes=1, isolate=True, say=said.append)
    assert not (tmp_path / "c" / "cluster.json").exists()


@pytest.mark.parametrize(("isolate", "told"), [(None, []), (True, ["all"]), (False, ["none"])])
def test_a_cluster_keeps_what_was_asked_for_and_tells_its_nodes(
    tmp_path: Path, isolate: bool | None, told: list[str]
) -> None:
    state = ClusterState("c", 1, 8.0, StoreAccess("http://s", "a", "b"), isolate=isolate)
    state.nodes["node-1"] = NodeState(number=1)
    state.save(tmp_path)
    loaded = ClusterState.load(tmp_path)
    assert loaded is not None
    command = node_command(tmp_path, tmp_path / "n", loaded, "node-1")
    assert [command[index + 1] for index, word in enumerate(command) if word == "--isolation"] == told


def test_a_cluster_does_not_silently_become_an_isolated_one(tmp_path: Path) -> None:
    ClusterState("c", 1, 8.0, StoreAccess("http://s", "a", "b")).save(tmp_path)
    with pytest.raises(ClusterError, match="isolation is 'auto' and cannot become 'none'"):
        LocalCluster(tmp_path).up(nodes=1, isolate=False, say=lambda text: None)


def test_an_image_holds_the_paths_and_programs_that_its_table_names(tmp_path: Path) -> None:
    script = tmp_path / "serve.sh"
    script.touch()
    table = tmp_path / "images.yaml"
    table.write_text(
        f"images:\n- {{match: 'mine:*', paths: [{tmp_path}/models], command: [sh, {script}]}}\n"
        f"- {{match: 'snake:*', python: true}}\n"
    )
    images = ImageTable.load(table)
    assert images.find("mine:1").trees == (tmp_path / "models", script)
    assert not images.find("mine:1").python
    assert Path(sys.prefix) in images.find("snake:1").trees


@pytest.mark.parametrize(
    ("empty", "in_memory"),
    [({}, False), ({"medium": "Memory"}, True), ({"medium": "Memory", "sizeLimit": "100Ei"}, False)],
)
async def test_a_volume_in_memory_lies_there_where_its_limit_fits(
    tmp_path: Path, empty: dict[str, Any], in_memory: bool
) -> None:
    facts = PodFacts(pod(volumes=[{"name": "v", "emptyDir": empty}]), "127.1.1.2", "127.1.1.1", {})
    nothing: Any = None
    built = await VolumeBuilder(tmp_path / "disk", facts, nothing, nothing, memory=tmp_path / "memory").build()
    assert built == {"v": tmp_path / ("memory" if in_memory else "disk") / "v"}
    assert os.access(built["v"], os.W_OK)


async def test_without_a_file_system_in_memory_the_volume_is_on_disk(tmp_path: Path) -> None:
    facts = PodFacts(pod(volumes=[{"name": "v", "emptyDir": {"medium": "Memory"}}]), "127.1.1.2", "127.1.1.1", {})
    nothing: Any = None
    assert await VolumeBuilder(tmp_path, facts, nothing, nothing).build() == {"v": tmp_path / "v"}


@pytest.mark.parametrize(
    ("code", "line", "failure"),
    [
        (127, "nsenter: failed to execute /no/program: No such file or directory", "No such file or directory"),
        (126, "nsenter: failed to execute ./x: Permission denied", "Permission denied"),
        (127, "sh: 1: nothing: not found", ""),
        (1, "nsenter: failed to execute /no/program: No such file or directory", ""),
        (None, "", ""),
    ],
)
def test_a_program_that_cannot_be_started_is_told_from_one_that_failed(
    code: int | None, line: str, failure: str
) -> None:
    assert exec_failure(code, line) == failure
