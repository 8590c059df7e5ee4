"""A Prometheus beside the cluster: the real program, with the scrape configuration of plain pod discovery."""

from __future__ import annotations

import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trireme_local import discovery
from trireme_local.errors import ClusterError

SCRAPE_SECONDS = 5
PROGRAM = "prometheus"
_ANNOTATION = f"{discovery.META}pod_annotation_prometheus_io_"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def program() -> str:
    """Path of Prometheus. Raises `ClusterError` where it is not installed."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise ClusterError("--prometheus needs the program prometheus on PATH (Debian: apt-get install prometheus)")
    return found


@dataclass(frozen=True)
class LocalPrometheus:
    """One Prometheus that keeps all it has in `data` and listens on a loopback address."""

    data: Path
    address: str
    port: int

    @property
    def url(self) -> str:
        """Of its web page and its API."""
        return f"http://{self.address}:{self.port}"

    @property
    def _targets(self) -> Path:
        return self.data / "targets"

    def prepare(self, others: Sequence[str]) -> None:
        """Write its configuration; `others`: HOST:PORT of what it scrapes beside pods."""
        self._targets.mkdir(parents=True, exist_ok=True)
        discovery.write(self._targets / "others.json", [{"targets": [target]} for target in others])
        (self.data / "prometheus.yml").write_text(yaml.safe_dump(self._configuration(), sort_keys=False))

    def commands(self, kubeconfig: Path) -> dict[str, list[str]]:
        """Daemon -> command line. Raises `ClusterError` where Prometheus is not installed."""
        flags = {
            "config.file": self.data / "prometheus.yml",
            "storage.tsdb.path": self.data / "data",
            "storage.tsdb.retention.time": "7d",
            "web.listen-address": f"{self.address}:{self.port}",
        }
        watching = [sys.executable, "-m", "trireme_local.discovery", "--kubeconfig", str(kubeconfig)]
        return {
            "discovery": [*watching, "--output", str(self._targets / "pods.json")],
            "prometheus": [program(), *(f"--{flag}={value}" for flag, value in flags.items())],
        }

    def problem(self) -> str:
        """Why it cannot be asked yet; "" when it can."""
        try:
            _DIRECT.open(f"{self.url}/-/ready", timeout=2).close()
        except (urllib.error.URLError, OSError) as error:
            return f"Prometheus at {self.url} is not ready: {error}"
        return ""

    def _configuration(self) -> dict[str, Any]:
        return {
            "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "scrape_timeout": f"{SCRAPE_SECONDS - 1}s"},
            "scrape_configs": [
                {
                    "job_name": "kubernetes-pods",
                    # What tells of other objects than itself has a namespace of its own in its series.
                    "honor_labels": True,
                    "file_sd_configs": [self._file("pods.json")],
                    "relabel_configs": _pod_relabelling(),
                },
                {"job_name": "others", "honor_labels": True, "file_sd_configs": [self._file("others.json")]},
            ],
        }

    def _file(self, name: str) -> dict[str, Any]:
        return {"files": [os.fspath(self._targets / name)], "refresh_interval": f"{SCRAPE_SECONDS}s"}


def _pod_relabelling() -> list[dict[str, Any]]:
    """The widely used convention: annotations of a pod say whether and where it is scraped."""

    def copy(source: str, target: str) -> dict[str, Any]:
        return {"source_labels": [f"{discovery.META}{source}"], "target_label": target}

    return [
        {"action": "keep", "source_labels": [f"{_ANNOTATION}scrape"], "regex": "true"},
        {"action": "drop", "source_labels": [f"{discovery.META}pod_phase"], "regex": "Pending|Succeeded|Failed"},
        {"source_labels": [f"{_ANNOTATION}path"], "target_label": "__metrics_path__", "regex": "(.+)"},
        {
            "source_labels": ["__address__", f"{_ANNOTATION}port"],
            "target_label": "__address__",
            "regex": r"([^:]+)(?::\d+)?;(\d+)",
            "replacement": "$1:$2",
        },
        copy("namespace", "namespace"),
        copy("pod_name", "pod"),
        copy("pod_node_name", "node"),
    ]
