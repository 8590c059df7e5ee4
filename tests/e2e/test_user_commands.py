"""What people type: kubectl and trireme."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from product import Product, TestedJob, wait_for
from tiny_job import tiny_job

from trireme_local.cluster import LocalCluster

ROOT = Path(__file__).resolve().parents[2]
ENDLESS = 1_000_000


def trireme(product: Product, *arguments: str) -> str:
    """Run the trireme command; its output."""
    command = [sys.executable, "-m", "trireme_cli", *arguments, "--kubeconfig", str(product.local.kubeconfig)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_finished_job_can_be_read_with_kubectl(product: Product, undisturbed: TestedJob) -> None:
    name, kubectl = undisturbed.name, product.kubectl
    header, row = kubectl("get", "ptj", name).splitlines()
    assert header.split() == ["NAME", "STATE", "STEP", "PROGRESS", "LOSS", "NODES", "RESTARTS", "AGE"]
    assert row.split()[:4] == [name, "Succeeded", "60", "100%"]
    wide = kubectl("get", "pretrainjobs", name, "-o", "wide").splitlines()[0].split()
    assert {"MFU", "LAST-CKPT"} <= set(wide)
    described = kubectl("describe", "pretrainjob", name)
    assert "ModelExported" in described
    assert "JobSucceeded" in described
    assert "step 60/60 loss" in kubectl("logs", f"{name}-0")
    assert "CheckpointCommitted" in kubectl("get", "events", "--field-selector", f"involvedObject.name={name}")
    explained = kubectl("explain", "pretrainjob.spec.checkpoint.keep")
    assert "the last verified one is never deleted" in " ".join(explained.split())
    kubectl("wait", "--for=condition=Succeeded", f"ptj/{name}", "--timeout=5s")
    wait_for(
        "the pods have ended", lambda: {p["status"]["phase"] for p in undisturbed.pods().values()} == {"Succeeded"}, 90
    )
    assert "step 60/60 loss" in trireme(product, "logs", name, "--rank", "0")
    assert "Succeeded" in trireme(product, "get", "ptj", name)
    assert undisturbed.processes() == []


def test_deleting_a_job_cascades_leaves_no_process_and_keeps_what_is_stored(product: Product) -> None:
    job = product.apply(tiny_job("deleted", nodes=2, devices=1, steps=ENDLESS))
    job.wait_committed()
    prefix = product.bucket / job.keys.job_prefix
    owned = ["pods", "services", "configmaps", "secrets"]

    def names() -> list[str]:
        found = product.kubectl("get", ",".join(owned), "-o", "name").split()
        return [name for name in found if name.split("/")[1].startswith("deleted")]

    assert {name.split("/")[0] for name in names()} == {"pod", "service", "configmap", "secret"}
    assert job.processes()
    product.kubectl("delete", "pretrainjob", "deleted")
    left: list[str] = []

    def gone() -> bool:
        left[:] = names()
        return not left

    try:
        wait_for("all that the job owned is gone", gone, 90)
    except AssertionError as error:
        raise AssertionError(
            f"{error}; left: {[product.kubectl('get', item, '-o', 'yaml') for item in left]}"
        ) from error
    wait_for("all its processes are gone", lambda: not job.processes(), 30)
    assert list(prefix.glob("a1/step-*/manifest.json")), "deleting a job deletes nothing in the store"


def test_logs_of_an_attempt_outlive_its_node(product: Product) -> None:
    job = product.apply(tiny_job("logged", nodes=2, devices=1, steps=ENDLESS))
    job.wait_committed()
    wait_for("the rank's log is stored", lambda: (product.bucket / job.keys.log(1, 1)).exists(), 60)
    product.local.kill_node(job.node_of(1))
    job.wait_recovered(2)
    assert "loss" in trireme(product, "logs", "logged", "--rank", "0", "--previous")
    trireme(product, "logs", "logged", "--rank", "1", "--previous")
    assert os.environ.get("KUBECONFIG") != str(product.local.kubeconfig)


def readme_block(heading: str) -> str:
    """The commands under a heading of the README."""
    section = (ROOT / "README.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return str(block)


@pytest.mark.timeout(900)
def test_the_readmes_local_cluster_is_run_as_written(tmp_path: Path, kubectl_program: str) -> None:
    """In a checkout of its own: the commands name .trireme/local."""
    for name in ("examples", "README.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    commands = readme_block("A Kubernetes on this computer")
    shell = subprocess.Popen(
        ["bash", "-euxc", commands], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = shell.communicate(timeout=800)
        assert shell.returncode == 0, output
        wait_for("no process is left", lambda: not left_in(tmp_path), 30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        LocalCluster(tmp_path / ".trireme" / "local").down()
    before, after = re.findall(r"^\S*stdlib-\d .*\n\S*stdlib-\d .*\n", output, re.MULTILINE)
    assert set(re.findall(r"node-\d", before)) == {"node-3", "node-2"}
    assert set(re.findall(r"node-\d", after)) == {"node-2", "node-1"}


def left_in(folder: Path) -> list[list[str]]:
    """Command lines of processes that run in a folder or name it."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = [*(process.info["cmdline"] or []), process.info["cwd"] or ""]
        if any(str(folder) in word for word in words):
            found.append(words)
    return found
