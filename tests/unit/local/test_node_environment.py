"""How text is rewritten on its way into a process: $(VAR), mounts, images."""

import sys
from pathlib import Path

import pytest

from trireme_local.node.environment import ConfigError, PodFacts, container_environment, expand
from trireme_local.node.images import Image, ImageNotFound, ImageTable, ImageTableError, normalize
from trireme_local.node.mounts import MountTable

POD = {
    "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "1"}, "annotations": {"q": 'x"y'}},
    "spec": {
        "nodeName": "node-1",
        "containers": [{"name": "main", "resources": {"limits": {"memory": "1Gi"}, "requests": {"cpu": "100m"}}}],
    },
}
FACTS = PodFacts(POD, "127.1.1.2", "127.1.1.1", {"cpu": "4", "memory": "8Gi"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)-$(B)", "1-2"),
        ("$(MISSING)", "$(MISSING)"),
        ("$$(A)", "$(A)"),
        ("$$", "$"),
        ("cost $5 $A", "cost $5 $A"),
        ("$(A", "$(A"),
    ],
)
def test_references_expand_as_in_kubernetes(text: str, expected: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == expected


async def _nothing(kind: str, name: str) -> None:
    return None


async def test_later_entries_see_earlier_ones_and_the_initial_environment() -> None:
    env = [{"name": "ONE", "value": "1"}, {"name": "TWO", "value": "$(ONE)$(HOME)"}, {"name": "ONE", "value": "last"}]
    found = await container_environment({"name": "main", "env": env}, FACTS, _nothing, {"HOME": "/h"})
    assert found == {"HOME": "/h", "ONE": "last", "TWO": "1/h"}


async def test_what_is_missing_and_not_optional_is_named() -> None:
    env = [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "gone", "key": "k"}}}]
    with pytest.raises(ConfigError, match='configmap "gone" not found'):
        await container_environment({"name": "main", "env": env}, FACTS, _nothing, {})


def test_the_downward_api_tells_of_the_pod() -> None:
    assert FACTS.field("metadata.labels['a']") == "1"
    assert FACTS.field("metadata.annotations") == 'q="x\\"y"'
    assert FACTS.field("status.podIP") == "127.1.1.2"
    main = POD["spec"]["containers"][0]
    assert FACTS.resource_field({"resource": "limits.memory", "divisor": "1Mi"}, main) == "1024"
    assert FACTS.resource_field({"resource": "limits.cpu"}, main) == "4", "without a limit: what the node has"
    with pytest.raises(ConfigError):
        FACTS.field("spec.unknown")


MOUNTS = MountTable({"/data": Path("/h/d"), "/data/deep": Path("/h/x"), "/etc/app/": Path("/h/e")})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data", "/h/d"),
        ("/data/a/b", "/h/d/a/b"),
        ("/data/deep/a", "/h/x/a"),
        ("/database", "/database"),
        ("s3://bucket/data/x", "s3://bucket/data/x"),
        ("http://host/data", "http://host/data"),
        ("--file=/etc/app/job.json", "--file=/h/e/job.json"),
        ("/a/data", "/a/data"),
        ("/data:/etc/app", "/h/d:/h/e"),
        ("cat '/data/x' >/data/y; ls /data", "cat '/h/d/x' >/h/d/y; ls /h/d"),
    ],
)
def test_mount_paths_become_host_paths_where_a_path_begins(text: str, expected: str) -> None:
    assert MOUNTS.rewrite(text) == expected


def test_a_path_outside_every_mount_has_no_host_path() -> None:
    assert MOUNTS.host_path("/data/x") == Path("/h/d/x")
    assert MOUNTS.host_path("/other") is None
    assert MountTable({}).rewrite("/data") == "/data"


def test_the_serving_image_is_a_virtual_environment_or_says_how_to_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    table = ImageTable.load()
    with pytest.raises(ImageNotFound, match="run `make setup-serving`"):
        table.find("ghcr.io/trireme-dev/trireme-serving:latest")
    (tmp_path / ".venv-serving" / "bin").mkdir(parents=True)
    (tmp_path / ".venv-serving" / "bin" / "python").touch()
    found = table.find("ghcr.io/trireme-dev/trireme-serving:latest")
    assert found.path.split(":")[0] == str(tmp_path / ".venv-serving" / "bin")


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("busybox", "busybox:latest"),
        ("docker.io/library/busybox:1", "busybox:1"),
        ("host:5000/a/b", "host:5000/a/b:latest"),
        ("a@sha256:0", "a@sha256:0"),
    ],
)
def test_images_have_one_name_each(image: str, name: str) -> None:
    assert normalize(image) == name


def test_the_default_table_knows_the_trainer_wherever_it_is_hosted() -> None:
    table = ImageTable.load()
    for image in ("trireme/trainer:v1", "ghcr.io/someone/trireme/trainer@sha256:1", "ghcr.io/x/trireme-trainer:dev"):
        found = table.find(image)
        assert found.command[:2] == ("python", "-m")
        assert found.path.startswith("/")
    assert table.find("busybox").command == ("sh",)
    with pytest.raises(ImageNotFound, match="nothing/like:it"):
        table.find("nothing/like:it")


def test_an_own_table_comes_first_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "images.yaml"
    table.write_text("images:\n- {match: 'busybox:*', command: [ash], env: {A: 1}}\n")
    assert ImageTable.load(table).find("busybox") == Image("busybox:latest", ("ash",), env={"A": "1"})
    table.write_text("images: [{command: [x]}]")
    with pytest.raises(ImageTableError):
        ImageTable.load(table)
