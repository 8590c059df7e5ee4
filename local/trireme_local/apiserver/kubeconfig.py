"""Kubeconfig files for a bearer token."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import yaml


def write(
    path: Path,
    *,
    server: str,
    token: str,
    ca_path: Path,
    user: str = "admin",
    namespace: str = "default",
    cluster: str = "trireme-local",
) -> Path:
    """Write a kubeconfig that kubectl and the client libraries read; the CA is embedded. Returns `path`."""
    ca_data = base64.b64encode(ca_path.read_bytes()).decode()
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {"server": server, "certificate-authority-data": ca_data}}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user, "namespace": namespace}}],
        "current-context": cluster,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.touch(mode=0o600)
    temporary.write_text(yaml.safe_dump(content, sort_keys=False))
    temporary.replace(path)
    return path
