"""The whole product on one computer: local cluster, operator, store; and jobs as a user sees them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import psutil
import yaml

from trireme.checkpoints import JobKeys, Manifest
from trireme.protocol import Report
from trireme.resources import kind_named
from trireme.resources.status import TERMINAL_STATES, ConditionType, JobState, JobStatus
from trireme_cli.cluster import Cluster, ClusterError
from trireme_cli.install import OperatorProcess, install_into, start_operator, stop_operator
from trireme_cli.jobs import AgentClient, Job
from trireme_cli.local import STORE_SECRET
from trireme_local.cluster import LocalCluster
from trireme_local.sessions import MARKER, node_marker

Json = dict[str, Any]
POLL_SECONDS = 0.2
# Bounds a failure, not a success: jobs take seconds, and a computer may be busy with other things.
PATIENCE_SECONDS = 240.0
# Shorter than in production, so that a test sees a change of leaders; all by the documented variables.
OPERATOR_ENVIRONMENT = {
    "TRIREME_OPERATOR_LEASE_SECONDS": "6",
    "TRIREME_OPERATOR_RENEW_DEADLINE_SECONDS": "4",
    "TRIREME_OPERATOR_RETRY_SECONDS": "1",
}


def wait_for(what: str, condition: Callable[[], Any], seconds: float, every: float = POLL_SECONDS) -> Any:
    """The first true value of the condition; fails after some seconds."""
    deadline = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(every)


@dataclass(frozen=True)
class LoggedStep:
    """One step as rank 0 logs it."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    samples: str

    _LINE: ClassVar[re.Pattern[str]] = re.compile(
        r"step (\d+)/\d+ loss (\S+) grad_norm (\S+) learning_rate (\S+) samples (\S+) "
    )

    @classmethod
    def parse(cls, line: str) -> LoggedStep | None:
        """None for a line of another kind."""
        match = cls._LINE.search(line)
        if match is None:
            return None
        return cls(int(match[1]), float(match[2]), float(match[3]), float(match[4]), match[5])


@dataclass
class Product:
    """A running installation."""

    directory: Path
    nodes: int
    local: LocalCluster = field(init=False)
    cluster: Cluster = field(init=False)
    operators: list[OperatorProcess] = field(default_factory=list)
    jobs: dict[str, TestedJob] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.local = LocalCluster(self.directory / "cluster")

    # -- the installation

    def start(self) -> None:
        """Cluster, CRDs, RBAC, store credentials, operator."""
        os.environ.update(OPERATOR_ENVIRONMENT)
        # With TRIREME_E2E_CONTROL_PLANE, a directory with kube-apiserver and etcd, everything runs against these.
        binaries = os.environ.get("TRIREME_E2E_CONTROL_PLANE")
        real = Path(binaries) if binaries else None
        state = self.local.up(nodes=self.nodes, control_plane=real, say=lambda text: None)
        self.local.write_secret(STORE_SECRET, state.store.environment())
        self.cluster = Cluster(self.local.kubeconfig)
        install_into(self.cluster)
        self.start_operator()

    def stop(self) -> None:
        for operator in self.operators:
            self._resume(operator)
            stop_operator(operator)
        self.local.down()
        for name in OPERATOR_ENVIRONMENT:
            os.environ.pop(name, None)

    def start_operator(self) -> OperatorProcess:
        """One more operator; all share one key, as replicas in a cluster do."""
        operator = start_operator(self.cluster, self.directory / "operator")
        self.operators.append(operator)
        return operator

    def kill_operator(self, operator: OperatorProcess) -> None:
        operator.process.kill()
        operator.process.wait()
        self.operators.remove(operator)

    @staticmethod
    def _resume(operator: OperatorProcess) -> None:
        if operator.process.poll() is None:
            operator.process.send_signal(signal.SIGCONT)

    def leader(self) -> str:
        """Holder of the operator's Lease."""
        path = "/apis/coordination.k8s.io/v1/namespaces/trireme-system/leases/trireme-operator"
        return str(self.cluster.request("GET", path)["spec"].get("holderIdentity") or "")

    def heal(self) -> None:
        """All jobs deleted, all nodes up and schedulable, the store and one operator running."""
        for job in list(self.jobs.values()):
            job.delete()
        self.jobs.clear()
        while len(self.operators) > 1:
            extra = self.operators.pop()
            self._resume(extra)
            stop_operator(extra)
        if not self.operators or self.operators[0].process.poll() is not None:
            self.operators.clear()
            self.start_operator()
        self._resume(self.operators[0])
        for node in self.local.state().nodes:
            self.local.revive_node(node)
            if self.cluster.request("GET", f"/api/v1/nodes/{node}")["spec"].get("unschedulable"):
                self.kubectl("uncordon", node)
        self.local.up(nodes=self.nodes, say=lambda text: None)

    # -- the cluster

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True, seconds: float = 120) -> str:
        """Run the real kubectl; its standard output."""
        command = ["kubectl", "--kubeconfig", str(self.local.kubeconfig), *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=seconds, check=False)
        if check and done.returncode != 0:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout if check else done.stdout + done.stderr

    def apply(self, manifest: Json) -> TestedJob:
        """kubectl apply a job."""
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
        job = TestedJob(self, manifest["metadata"]["name"], manifest["kind"])
        self.jobs[job.name] = job
        return job

    def write_secret(self, name: str, entries: dict[str, str]) -> None:
        self.local.write_secret(name, entries)

    def store_process(self) -> psutil.Process:
        """The S3 server."""
        process = self.local.state().daemons["s3"].find()
        assert process is not None
        return process

    @property
    def bucket(self) -> Path:
        """The bucket's objects, as files."""
        return self.local.directory / "s3" / self.local.state().store.bucket

    def describe(self) -> str:
        """What a person needs who looks at a failed test."""
        parts = [f"--- nodes\n{self.kubectl('get', 'nodes', check=False)}"]
        parts += [job.describe() for job in self.jobs.values()]
        log = self.directory / "operator" / "operator.log"
        parts.append("--- operator\n" + "\n".join(log.read_text(errors="replace").splitlines()[-60:]))
        return "\n".join(parts)


@dataclass
class TestedJob:
    """One job: its status, its agents, its processes and its objects in the store."""

    __test__ = False
    product: Product
    name: str
    kind: str = "PretrainJob"

    # -- reading

    def get(self) -> Job:
        resource = self.product.cluster.find_type(kind_named(self.kind).plural)
        return Job(resource, self.product.cluster.request("GET", resource.path("default", self.name)))

    @property
    def status(self) -> JobStatus:
        return self.get().status

    def events(self) -> list[tuple[str, str]]:
        """(reason, message) of the job's events."""
        query = {"fieldSelector": f"involvedObject.kind={self.kind},involvedObject.name={self.name}"}
        found = self.product.cluster.request("GET", "/api/v1/namespaces/default/events", query=query)["items"]
        return [(e["reason"], e.get("message", "")) for e in found]

    def pods(self) -> dict[str, Json]:
        query = {"labelSelector": f"trireme.dev/job-name={self.name}"}
        found = self.product.cluster.request("GET", "/api/v1/namespaces/default/pods", query=query)["items"]
        return {pod["metadata"]["name"]: pod for pod in found}

    def pod_uids(self) -> dict[str, str]:
        return {name: pod["metadata"]["uid"] for name, pod in self.pods().items()}

    def report(self, slot: int = 0) -> Report | None:
        """What the slot's agent says, asked directly."""
        job = self.get()
        address = next((s.address for s in job.status.gang.slots if s.index == slot), None)
        if not address:
            return None
        try:
            return AgentClient(self.product.cluster, job).report(address)
        except ClusterError:
            return None

    def condition(self, kind: ConditionType) -> tuple[str, str, str]:
        """(status, reason, message) of one condition."""
        found = self.status.condition(kind)
        return (found.status, found.reason, found.message) if found else ("", "", "")

    # -- waiting

    def wait(self, what: str, condition: Callable[[JobStatus], Any], seconds: float = PATIENCE_SECONDS) -> Any:
        """Poll the status; fails at once when the job has ended and the condition does not hold."""

        def look() -> Any:
            status = self.status
            value = condition(status)
            if not value and status.state in TERMINAL_STATES:
                raise AssertionError(f"{self.name} ended in {status.state} and not: {what}; {status.failure}")
            return value

        return wait_for(f"{self.name}: {what}", look, seconds)

    def wait_state(self, state: JobState, seconds: float = PATIENCE_SECONDS) -> JobStatus:
        status: JobStatus = self.wait(f"state {state}", lambda s: s.state == state and s, seconds)
        return status

    def wait_step(self, step: int, attempt: int = 1, seconds: float = PATIENCE_SECONDS) -> int:
        """Until an attempt has completed a step, by its agents' own word; the step."""

        def look() -> int | None:
            status = self.status
            if status.state in TERMINAL_STATES and status.state != JobState.SUCCEEDED:
                raise AssertionError(f"{self.name} ended in {status.state}: {status.failure}")
            for slot in range(len(status.gang.slots)):
                report = self.report(slot)
                if report and report.progress and report.attempt >= attempt and report.progress.step >= step:
                    return report.progress.step
            return None

        reached: int = wait_for(f"{self.name}: step {step} of attempt {attempt}", look, seconds)
        return reached

    def wait_committed(self, step: int = 1, seconds: float = PATIENCE_SECONDS) -> int:
        """Until a checkpoint of this step or a later one is committed; its step."""
        found: int = self.wait(
            f"a checkpoint of step {step}", lambda s: (s.checkpoint.step or 0) >= step and s.checkpoint.step, seconds
        )
        return found

    def wait_recovered(self, attempt: int, seconds: float = PATIENCE_SECONDS) -> JobStatus:
        """Until an attempt trains and is past its resume point."""
        self.wait(f"attempt {attempt} runs", lambda s: s.gang.attempt >= attempt and s.state == "Running", seconds)
        resumed = self.status.gang.resume_from
        self.wait_step((resumed.step if resumed else 0) + 1, attempt, seconds)
        return self.status

    def wait_event(self, reason: str, seconds: float = PATIENCE_SECONDS) -> str:
        """The message of the newest event with this reason."""

        def look() -> list[str]:
            return [message for name, message in self.events() if name == reason]

        messages: list[str] = wait_for(f"{self.name}: event {reason}", look, seconds)
        return messages[-1]

    # -- acting

    def patch(self, spec: Json) -> None:
        self.product.kubectl("patch", self.kind, self.name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def rank_pids(self, slot: int = 0) -> dict[int, int]:
        """rank -> process id of the slot's living ranks."""
        report = self.report(slot)
        return {r.rank: r.pid for r in report.ranks if r.alive} if report else {}

    def node_of(self, slot: int) -> str:
        return next(s.node for s in self.status.gang.slots if s.index == slot and s.node)

    def processes(self) -> list[psutil.Process]:
        """Everything that runs for this job on any node, known by the pods' names in its environment."""
        nodes = self.product.local.directory / "nodes"
        markers = tuple(f"{node_marker(nodes / node, node)}/" for node in self.product.local.state().nodes)
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
            ours = environment.get(MARKER, "").startswith(markers)
            if ours and environment.get("POD_NAME", "").rpartition("-")[0] == self.name:
                found.append(process)
        return found

    def delete(self) -> None:
        self.product.kubectl("delete", self.kind, self.name, "--ignore-not-found", "--wait=false")
        for name in self.pods():
            # A frozen node confirms no deletion.
            self.product.kubectl("delete", "pod", name, "--ignore-not-found", "--force", "--grace-period=0")
        wait_for(f"{self.name}: no pods", lambda: not self.pods(), 60)

    # -- the store

    @property
    def keys(self) -> JobKeys:
        job = self.get()
        spec = job.raw["spec"]
        return JobKeys(spec["checkpoint"]["uri"], job.namespace, job.name, job.uid)

    def step_directory(self, attempt: int, step: int) -> Path:
        """A checkpoint's files."""
        return self.product.bucket / self.keys.step(attempt, step)

    def checkpoints(self) -> list[Manifest]:
        """Committed checkpoints, oldest first."""
        root = self.product.bucket / self.keys.job_prefix
        found = [Manifest.decode(p.read_bytes()) for p in root.glob("a*/step-*/manifest.json")]
        return sorted(found, key=lambda m: (m.attempt, m.step))

    def steps_of(self, attempt: int) -> dict[int, LoggedStep]:
        """What rank 0 of one attempt logged of each step; from the store, where logs outlive their pods."""
        log = self.product.bucket / self.keys.log(attempt, 0)
        found = [LoggedStep.parse(line) for line in log.read_text(errors="replace").splitlines()]
        return {step.step: step for step in found if step is not None}

    def describe(self) -> str:
        kubectl = self.product.kubectl
        try:
            status = yaml.safe_dump(self.get().raw.get("status", {}), sort_keys=False)
        except ClusterError as error:
            return f"--- job {self.name}\n{error}"
        events = "\n".join(f"  {reason}: {message}" for reason, message in self.events())
        logs = "\n".join(
            f"--- log of {name}\n{kubectl('logs', name, '--tail=40', check=False)}" for name in self.pods()
        )
        pods = kubectl("get", "pods", "-o", "wide", check=False)
        short = "\n".join(line for line in status.splitlines())[-7000:]
        return f"--- job {self.name}\n{short}\n--- events\n{events}\n--- pods\n{pods}\n{logs}"
