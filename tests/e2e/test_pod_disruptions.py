"""Somebody takes pods away: ranks save first, and nothing is charged."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
from product import PATIENCE_SECONDS, Product, TestedJob, wait_for
from tiny_job import tiny_job

from trireme.protocol.messages import DRAINED_EXIT_CODE

ENDLESS = 1_000_000


def assert_saved_and_moved(job: TestedJob, attempt: int, step_before: int) -> None:
    """The attempt resumed from a save made because of the disruption, and no budget paid for it."""
    status = job.wait_recovered(attempt)
    assert status.gang.resume_from is not None
    assert status.gang.resume_from.step >= step_before, "ranks saved before they left"
    restarts = status.restarts
    assert [r.cause for r in restarts.history] == ["Preemption"] * (attempt - 1)
    assert (restarts.application, restarts.hang, restarts.out_of_memory, restarts.infrastructure) == (0, 0, 0, 0)


def test_deleted_evicted_and_drained_pods_save_first(product: Product) -> None:
    # A save only when asked for: what the next attempt resumes from then is the save of the disruption.
    job = product.apply(tiny_job("disrupted", nodes=2, devices=1, steps=ENDLESS, checkpoint__intervalSteps=ENDLESS))
    before = job.wait_step(10)
    uids = job.pod_uids()
    product.kubectl("delete", "pod", "disrupted-1", "--wait=false")
    assert_saved_and_moved(job, 2, before)
    after = job.pod_uids()
    assert after["disrupted-0"] == uids["disrupted-0"]
    assert after["disrupted-1"] != uids["disrupted-1"]

    before = job.wait_step(before + 10, attempt=2)
    path = "/api/v1/namespaces/default/pods/disrupted-0"
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "disrupted-0"}}
    product.cluster.request("POST", f"{path}/eviction", eviction)
    assert_saved_and_moved(job, 3, before)

    before = job.wait_step(before + 10, attempt=3)
    drained = job.node_of(1)
    product.kubectl("drain", drained, "--force", "--delete-emptydir-data", "--ignore-daemonsets", "--timeout=120s")
    assert_saved_and_moved(job, 4, before)
    assert drained not in [slot.node for slot in job.status.gang.slots]


@contextlib.contextmanager
def watch_exit_codes(product: Product, pod: str) -> Iterator[Path]:
    """A file that gets the exit code of the pod's container; a watch, because the pod is replaced at once."""
    path = product.directory / f"{pod}.exit-codes"
    template = '{.status.containerStatuses[0].state.terminated.exitCode}{"\\n"}'
    command = ["kubectl", "--kubeconfig", str(product.local.kubeconfig), "get", "pod", pod, "--watch"]
    with path.open("wb") as output:
        watch = subprocess.Popen([*command, "-o", f"jsonpath={template}"], stdout=output)
    try:
        yield path
    finally:
        watch.kill()
        watch.wait()


def test_a_pod_told_to_end_exits_with_the_code_of_a_drain(product: Product) -> None:
    job = product.apply(tiny_job("terminated", devices=1, steps=ENDLESS, checkpoint__intervalSteps=ENDLESS))
    before = job.wait_step(10)
    # The newest: in a second try one of the first may not have ended yet.
    agent = max((p for p in job.processes() if "trireme_trainer.agent" in p.cmdline()), key=psutil.Process.create_time)
    with watch_exit_codes(product, "terminated-0") as codes:
        agent.terminate()
        wait_for("the container's end", lambda: codes.read_text().split(), PATIENCE_SECONDS)
        found = [int(code) for code in codes.read_text().split()]
    assert set(found) == {DRAINED_EXIT_CODE}
    assert_saved_and_moved(job, 2, before)
