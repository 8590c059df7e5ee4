"""Files of a ConfigMap name a pod's mounts as the host does, and follow it."""

import json
from pathlib import Path
from typing import Any

from trireme_local.node.environment import PodFacts
from trireme_local.node.volumes import VolumeBuilder


async def no_token(audience: str | None, seconds: int) -> str:
    raise AssertionError("nobody asked for a token")


async def test_mount_paths_in_config_map_files_are_the_hosts_and_secrets_stay_as_they_are(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    content = json.dumps(
        {"uri": "/data/books", "file": "file:///data", "store": "s3://bucket/data", "other": "/database"}
    )
    objects = {
        "ConfigMap": {"data": {"job.json": content}},
        "Secret": {"data": {"key": "L2RhdGEvYm9va3M="}},
    }
    pod = {
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {
            "volumes": [
                {"name": "config", "configMap": {"name": "c"}},
                {"name": "secret", "secret": {"secretName": "s"}},
                {"name": "corpus", "hostPath": {"path": str(corpus)}},
            ],
            "containers": [
                {
                    "name": "main",
                    "volumeMounts": [
                        {"name": "config", "mountPath": "/etc/job"},
                        {"name": "corpus", "mountPath": "/data"},
                    ],
                }
            ],
        },
    }

    async def lookup(kind: str, name: str) -> dict[str, Any]:
        return objects[kind]

    facts = PodFacts(pod, "127.1.1.2", "127.1.1.1", {})
    volumes = await VolumeBuilder(tmp_path / "volumes", facts, lookup, no_token).build()
    assert json.loads((volumes["config"] / "job.json").read_text()) == {
        "uri": f"{corpus}/books",
        "file": f"file://{corpus}",
        "store": "s3://bucket/data",
        "other": "/database",
    }
    assert (volumes["secret"] / "key").read_bytes() == b"/data/books"


async def test_a_changed_secret_changes_all_its_files_at_once(tmp_path: Path) -> None:
    secret = {"data": {"key": "b2xk", "token": "b2xk"}}

    async def lookup(kind: str, name: str) -> dict[str, Any]:
        return secret

    volumes = [{"name": "keys", "secret": {"secretName": "s", "defaultMode": 0o440}}]
    pod = {"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"volumes": volumes, "containers": []}}
    builder = VolumeBuilder(tmp_path, PodFacts(pod, "127.1.1.2", "127.1.1.1", {}), lookup, no_token)
    keys = (await builder.build())["keys"]
    assert {name: (keys / name).read_text() for name in ("key", "token")} == {"key": "old", "token": "old"}
    assert (keys / "key").stat().st_mode & 0o777 == 0o440
    first = (keys / "..data").resolve()
    await builder.build()
    assert (keys / "..data").resolve() == first
    secret["data"] = {"key": "bmV3", "more": "bmV3"}
    await builder.build()
    assert (keys / "..data").resolve() != first
    assert {path.name for path in keys.iterdir()} == {"..data", (keys / "..data").resolve().name, "key", "more"}
    assert (keys / "key").read_text() == (keys / "more").read_text() == "new"
