"""A local cluster with its operator, and jobs on it, as a user would run them."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from trireme.checkpoints.history import StepRecord
from trireme.protocol import JobConfig, Report
from trireme.resources.status import TERMINAL_STATES, JobState, JobStatus
from trireme_cli.cluster import Cluster, ClusterError
from trireme_cli.history import read_history
from trireme_cli.install import install_into, start_operator, stop_operator
from trireme_cli.jobs import AgentClient, Job, find_job
from trireme_cli.local import STORE_SECRET
from trireme_cli.store import open_store
from trireme_local.cluster import LocalCluster
from trireme_local.s3 import StoreAccess

EXAMPLE = Path("examples/pretrain.yaml")
NAMESPACE = "default"
POLL_SECONDS = 0.5
STATE_POLL_SECONDS = 5.0
"""Who looks at the API server takes processor time from the ranks beside it."""
RANKS_PER_NODE = 4
Found = TypeVar("Found")


class BenchmarkFailed(Exception):
    """What was to be measured did not happen; the message says what was seen instead."""


@dataclass(frozen=True)
class Bench:
    """A running cluster with an operator."""

    local: LocalCluster
    cluster: Cluster
    store: StoreAccess
    directory: Path

    def start(self, manifest: dict[str, Any]) -> RunningJob:
        """Apply a manifest."""
        self.cluster.apply(manifest, NAMESPACE)
        return RunningJob(self, manifest["metadata"]["name"])


@contextlib.contextmanager
def running_cluster(directory: Path, nodes: int) -> Iterator[Bench]:
    """Cluster and operator, both taken down at the end, also of a SIGTERM; their logs stay in the directory."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    local = LocalCluster(directory / "cluster")
    local.down()
    try:
        state = local.up(nodes=nodes, capacity={"trireme.dev/cpu-rank": str(RANKS_PER_NODE)})
        local.write_secret(STORE_SECRET, state.store.environment())
        cluster = Cluster(local.kubeconfig)
        install_into(cluster)
        operator = start_operator(cluster, directory / "operator")
        try:
            yield Bench(local, cluster, state.store, directory)
        finally:
            stop_operator(operator)
    finally:
        local.down()


def example_job(name: str, *, steps: int, interval_seconds: int = 0, interval_steps: int | None = None) -> Any:
    """examples/pretrain.yaml under another name, without validation in mid-run; no interval: no checkpoints."""
    manifest = yaml.safe_load(EXAMPLE.read_text())
    manifest["metadata"]["name"] = name
    spec = manifest["spec"]
    spec["training"] |= {"steps": steps, "validationIntervalSteps": steps}
    spec["checkpoint"] |= {"uri": "s3://trireme/benchmarks", "intervalSeconds": interval_seconds}
    if interval_steps is not None:
        spec["checkpoint"]["intervalSteps"] = interval_steps
    return manifest


def wait_for(
    what: str, timeout_seconds: float, look: Callable[[], Found | None], every_seconds: float = POLL_SECONDS
) -> Found:
    """The first answer that is not None. Raises BenchmarkFailed after the time-out."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        time.sleep(every_seconds)  # agents and API server are looked at from outside, as a user would
    raise BenchmarkFailed(f"{what}: not within {timeout_seconds:.0f} s")


class RunningJob:
    """A job that was applied."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench = bench
        self.name = name
        self._agents: AgentClient | None = None

    @property
    def job(self) -> Job:
        """The job as the API server has it."""
        return find_job(self.bench.cluster, self.name, NAMESPACE)

    @property
    def status(self) -> JobStatus:
        """Its status."""
        return self.job.status

    def config(self) -> JobConfig:
        """What its pods are told, from its ConfigMap."""
        job = self.job
        path = f"/api/v1/namespaces/{NAMESPACE}/configmaps/{job.name}-{job.uid[:8]}-config"
        return JobConfig.model_validate_json(self.bench.cluster.request("GET", path)["data"]["job.json"])

    def wait_state(self, state: JobState, timeout_seconds: float) -> JobStatus:
        """Wait for a state. Raises BenchmarkFailed when the job ends in another."""

        def look() -> JobStatus | None:
            status = self.status
            if status.state in TERMINAL_STATES and status.state is not state:
                raise BenchmarkFailed(f"{self.name} ended in {status.state}: {status.failure}")
            return status if status.state is state else None

        return wait_for(f"{self.name}: {state}", timeout_seconds, look, STATE_POLL_SECONDS)

    def report(self, slot: int = 0, address: str | None = None) -> Report | None:
        """What a slot's agent reports now; None while there is none. An address already known saves a request."""
        if address is None:
            address = next((s.address for s in self.status.gang.slots if s.index == slot), None)
        if not address:
            return None
        if self._agents is None:
            try:
                self._agents = AgentClient(self.bench.cluster, self.job)
            except (ClusterError, KeyError):
                return None  # the operator has not made the Secret yet
        return self._agents.report(address)

    def history(self) -> list[StepRecord]:
        """Every step that the store has a record of."""
        return read_history(open_store(self.bench.cluster, self.job))

    def patch_spec(self, changes: dict[str, Any]) -> None:
        """Merge changes into the spec."""
        self.bench.cluster.request(
            "PATCH",
            self.job.type.path(NAMESPACE, self.name),
            {"spec": changes},
            content_type="application/merge-patch+json",
        )

    def delete(self) -> None:
        """Delete the job and wait until its pods are gone."""
        self.bench.cluster.request("DELETE", self.job.type.path(NAMESPACE, self.name))
        pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
        query = {"labelSelector": f"trireme.dev/job-name={self.name}"}

        def look() -> bool | None:
            return None if self.bench.cluster.request("GET", pods, query=query)["items"] else True

        wait_for(f"{self.name}: pods gone", 90, look)
