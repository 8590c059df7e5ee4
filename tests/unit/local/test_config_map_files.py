"""Files of a ConfigMap name a pod's mounts as the host does."""

import json
from pathlib import Path
from typing import Any

from trireme_local.node.environment import PodFacts
from trireme_local.node.volumes import VolumeBuilder


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

    async def no_token(audience: str | None, seconds: int) -> str:
        raise AssertionError("nobody asked for a token")

    facts = PodFacts(pod, "127.1.1.2", "127.1.1.1", {})
    volumes = await VolumeBuilder(tmp_path / "volumes", facts, lookup, no_token).build()
    assert json.loads((volumes["config"] / "job.json").read_text()) == {
        "uri": f"{corpus}/books",
        "file": f"file://{corpus}",
        "store": "s3://bucket/data",
        "other": "/database",
    }
    assert (volumes["secret"] / "key").read_bytes() == b"/data/books"
