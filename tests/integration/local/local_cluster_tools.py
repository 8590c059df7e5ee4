"""kubectl on a local cluster, and small pods."""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trireme_local.cluster import LocalCluster
from trireme_local.state import ClusterState

Json = dict[str, Any]
GRACE_SECONDS = 8.0


@dataclass(frozen=True)
class Kubectl:
    """The real kubectl on one cluster."""

    kubeconfig: Path

    def run(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        command = ["kubectl", "--kubeconfig", str(self.kubeconfig), *arguments]
        result = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
        if check and result.returncode != 0:
            raise AssertionError(f"{' '.join(command[3:])}: {result.stderr.strip()}")
        return result.stdout if result.returncode == 0 else result.stderr

    def apply(self, *manifests: Json) -> None:
        self.run("apply", "-f", "-", stdin=yaml.safe_dump_all(manifests))

    def get(self, kind: str, name: str, *options: str) -> Json:
        found: Json = json.loads(self.run("get", kind, name, "-o", "json", *options))
        return found

    def exists(self, kind: str, name: str, *options: str) -> bool:
        return bool(self.run("get", kind, name, "--ignore-not-found", "-o", "name", *options).strip())

    def wait(self, what: str, condition: Callable[[], Any], timeout_seconds: float = 30) -> Any:
        """Poll until the condition is true; its value."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"not within {timeout_seconds:g} s: {what}\n{self.run('get', 'pods', '-o', 'wide')}"
                )
            time.sleep(0.3)

    def wait_phase(self, pod: str, *phases: str, timeout_seconds: float = 30) -> Json:
        def look() -> Json | None:
            found = self.get("pod", pod)
            return found if found["status"].get("phase") in phases else None

        found: Json = self.wait(f"pod {pod} in {phases}", look, timeout_seconds)
        return found

    def delete_pods(self, *names: str) -> None:
        self.run("delete", "pod", *names, "--grace-period=0", "--force", "--ignore-not-found", "--wait=false")


@dataclass(frozen=True)
class Cluster:
    """The running cluster and the ways to reach it."""

    local: LocalCluster
    state: ClusterState
    kubectl: Kubectl


def shell_pod(name: str, script: str, *, container: Json | None = None, **spec: Any) -> Json:
    """A pod with one container `main` that runs a shell script."""
    main = {"name": "main", "image": "busybox", "command": ["sh", "-c", script], **(container or {})}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"test": name}},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 2, "containers": [main], **spec},
    }


def main_state(pod: Json) -> Json:
    """State of the container `main`."""
    statuses = pod["status"].get("containerStatuses") or [{"state": {}}]
    state: Json = next((item["state"] for item in statuses if item.get("name") == "main"), {})
    return state
