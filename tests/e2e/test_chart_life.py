"""The chart on a cluster: installed, upgraded under a running job, uninstalled under another, installed again."""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from product import Product, TestedJob, wait_for
from tiny_job import tiny_job

from trireme.protocol import PROTOCOL_VERSION
from trireme.resources import all_kinds
from trireme.resources.status import JobState
from trireme_cli.cluster import Cluster
from trireme_cli.local import STORE_SECRET

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "trireme"
API = ROOT / "api"
MAJOR, MINOR = PROTOCOL_VERSION.split(".")
NEWER = f"{MAJOR}.{int(MINOR) + 1}"
NAMESPACE = "trireme-system"
ENDLESS = 1_000_000
# Shorter than in production, so that the test does not wait for a leader that is lost with its node.
FAST = ["operator.leaderElection.leaseSeconds=6", "operator.leaderElection.renewDeadlineSeconds=4"]
SLOW_STEPS = {"training__globalBatchSize": 32, "data__sequenceLength": 128}


class Installed(Product):
    """A cluster on which nothing but Helm installs the operator."""

    program: str = "helm"

    def start(self) -> None:
        """Cluster and store credentials."""
        state = self.local.up(nodes=self.nodes, say=lambda text: None)
        self.local.write_secret(STORE_SECRET, state.store.environment())
        self.cluster = Cluster(self.local.kubeconfig)

    def helm(self, *arguments: str, settings: list[str] | None = None) -> str:
        """Run Helm on the release; its standard output."""
        command = [self.program, "--kubeconfig", str(self.local.kubeconfig), "--namespace", NAMESPACE, *arguments]
        command += [word for value in settings or [] for word in ("--set", value)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr}\n{self.describe()}"
        return done.stdout

    def refused(self, *arguments: str, settings: list[str]) -> str:
        """What Helm says of values that it refuses."""
        command = [self.program, "--kubeconfig", str(self.local.kubeconfig), "--namespace", NAMESPACE, *arguments]
        command += [word for value in settings for word in ("--set", value)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
        assert done.returncode != 0
        return done.stderr

    def operator_pods(self) -> dict[str, str]:
        """uid -> name of the operator's pods."""
        path = f"/api/v1/namespaces/{NAMESPACE}/pods"
        pods = self.cluster.request("GET", path, query={"labelSelector": "app.kubernetes.io/component=operator"})
        return {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in pods["items"]}

    def operator_logs(self) -> str:
        """What the operator's pods have said so far."""
        return "".join(
            self.kubectl("-n", NAMESPACE, "logs", name, check=False) for name in self.operator_pods().values()
        )

    def describe(self) -> str:
        pods = self.kubectl("-n", NAMESPACE, "get", "pods", "-o", "wide", check=False)
        jobs = "\n".join(job.describe() for job in self.jobs.values())
        return f"--- operator\n{pods}\n{self.operator_logs()[-6000:]}\n{jobs}"


@pytest.fixture
def product(tmp_path: Path, helm_program: str, kubectl_program: str) -> Iterator[Installed]:
    """An empty cluster of three nodes; on failure e2e/conftest.py shows it."""
    product = Installed(tmp_path, 3)
    product.program = helm_program
    try:
        product.start()
        yield product
    finally:
        product.local.down()


class Steps:
    """The step in a job's status, looked at all the time."""

    def __init__(self, job: TestedJob) -> None:
        self.seen: list[int] = []
        self._job, self._over = job, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._over.wait(0.3):
            if (progress := self._job.status.progress) is not None:
                self.seen.append(progress.step)

    def __enter__(self) -> "Steps":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.long
@pytest.mark.timeout(420)
def test_a_release_is_installed_upgraded_and_uninstalled_under_live_jobs(product: Installed) -> None:
    said = product.helm(
        "install", "trireme", str(CHART), "--create-namespace", "--wait", "--timeout", "90s", settings=FAST
    )
    assert "serves all namespaces of the cluster" in said
    assert len(product.operator_pods()) == 2

    job = product.apply(tiny_job("upgraded", nodes=2, devices=1, steps=500, **SLOW_STEPS))
    job.wait_committed()
    lost = job.node_of(0)
    product.local.kill_node(lost)
    assert lost not in [slot.node for slot in job.wait_recovered(2).gang.slots]
    product.local.revive_node(lost)
    upgrade_in_mid_run(product, job, build_of_a_newer_minor_version(product.local.directory / "newer"))
    status = job.wait_state(JobState.SUCCEEDED)
    assert [(r.cause, r.node) for r in status.restarts.history] == [("NodeLost", lost)]
    assert status.progress is not None
    assert status.progress.step == 500
    job.delete()
    product.jobs.pop(job.name)

    job = product.apply(tiny_job("left", nodes=1, devices=1, steps=ENDLESS))
    job.wait_step(1)
    resolved = job.status.resolved
    assert resolved is not None
    assert resolved.protocol == NEWER, "what was upgraded to speaks the newer version, to agents of the older"
    assert "forbidden" not in product.operator_logs().lower()
    uninstall_under_a_live_job(product, job)
    namespaced_installation_takes_the_job_over(product, job)


def build_of_a_newer_minor_version(folder: Path) -> Path:
    """What operator and agents share, as in a later release: with a field that the agents do not know."""
    shutil.copytree(API / "trireme", folder / "trireme", ignore=shutil.ignore_patterns("__pycache__"))
    messages = folder / "trireme" / "protocol" / "messages.py"
    text = messages.read_text()
    for old, new in [
        (f'PROTOCOL_VERSION = "{PROTOCOL_VERSION}"', f'PROTOCOL_VERSION = "{NEWER}"'),
        ("class Target(WireModel):\n", "class Target(WireModel):\n    hint: str = 'of a later version'\n"),
    ]:
        assert text.count(old) == 1
        text = text.replace(old, new)
    messages.write_text(text)
    return folder


def upgrade_in_mid_run(product: Installed, job: TestedJob, newer: Path) -> None:
    """Other settings for new jobs and a later operator: the running job's pods and its progress stay."""
    pods, replicas, before = job.pod_uids(), product.operator_pods(), job.status
    settings = [*FAST, "trainer.image.tag=9.9.9", "operator.logLevel=DEBUG", "devices.resourceName=amd.com/gpu"]
    settings += ["operator.extraEnv[0].name=PYTHONPATH", f"operator.extraEnv[0].value={newer}"]
    with Steps(job) as steps:
        product.helm("upgrade", "trireme", str(CHART), "--wait", "--timeout", "90s", settings=settings)
        wait_for("all replicas are new", lambda: not replicas.keys() & product.operator_pods().keys(), 60)
        reached = job.wait_step(1)
        after = job.wait("progress is told again", lambda s: s.progress and s.progress.step >= reached and s)
    assert steps.seen
    assert steps.seen == sorted(steps.seen), "the step never goes back"
    assert after.state == JobState.RUNNING, "the upgrade came in mid-run"
    assert job.pod_uids() == pods
    assert before.resolved is not None
    assert after.resolved == before.resolved
    assert (after.gang.attempt, after.restarts.total) == (2, 1)


def uninstall_under_a_live_job(product: Installed, job: TestedJob) -> None:
    """Nothing hangs, nothing of the job ends, and Helm says what it leaves."""
    refusal = product.refused(
        "upgrade", "trireme", str(CHART), settings=["monitoring.workloads.podMonitor.enabled=true"]
    )
    assert "needs the Prometheus operator's CRD PodMonitor" in refusal
    assert "What stays: the CRDs, all jobs and services with their pods" in product.helm("get", "notes", "trireme")
    pods = job.pod_uids()
    said = product.helm("uninstall", "trireme", "--wait", "--timeout", "60s")
    for kind in all_kinds():
        assert f"[CustomResourceDefinition] {kind.plural}.trireme.dev" in said
    assert "[Secret] trireme-operator-key" in said
    wait_for("the operator's pods are gone", lambda: not product.operator_pods(), 30)
    roles = product.kubectl(
        "get", "clusterroles,clusterrolebindings", "-l", "app.kubernetes.io/part-of=trireme", "-o", "name"
    )
    assert roles == ""
    assert not job.get().raw["metadata"].get("finalizers")
    assert all("finalizers" not in pod["metadata"] for pod in job.pods().values())
    job.wait_step(job.wait_step(1) + 20)
    assert job.pod_uids() == pods


def namespaced_installation_takes_the_job_over(product: Installed, job: TestedJob) -> None:
    """Without a single cluster role, with the key that was left, so that the agents go on answering."""
    pods, told = job.pod_uids(), job.status.progress
    settings = [*FAST, "rbac.clusterRoles=false", "crds.enabled=false", "watchNamespaces={default}"]
    said = product.helm("install", "trireme", str(CHART), "--wait", "--timeout", "90s", settings=settings)
    assert "What the operator cannot see: nodes" in said
    step = told.step if told else 0
    job.wait("progress is told again", lambda s: s.progress and s.progress.step > step)
    assert job.pod_uids() == pods
    assert "nodes cannot be seen" in product.operator_logs()
    product.helm("uninstall", "trireme", "--wait", "--timeout", "60s")
    product.kubectl("delete", job.kind, job.name, "--wait", "--timeout=30s")
    wait_for("without an operator the job's pods go with the job", lambda: not job.pods(), 60)
    product.jobs.pop(job.name)
