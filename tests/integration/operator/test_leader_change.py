"""A leader that is stopped in mid-recovery and goes on later changes nothing that its successor did."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_gang import Training
from operator_harness import NAMESPACE, arguments, create_job, job, kubeconfig, kubelets, status_of, until

from conftest_apiserver import ApiServerProcess
from trireme.resources.status import GangPhase, JobState, JobStatus

LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/trireme-operator"


@dataclass
class Replica:
    """An operator process."""

    identity: str
    process: subprocess.Popen[bytes]

    def send(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)


@contextlib.contextmanager
def replicas(server: ApiServerProcess, directory: Path, count: int) -> Any:
    """Operator processes that share an account and a key."""
    config, key = kubeconfig(server, directory / "kubeconfig"), directory / "key"
    started = []
    try:
        for number in range(count):
            identity = f"replica-{number}"
            command = [sys.executable, "-m", "trireme_operator", *arguments(config, key, identity)]
            with (directory / f"{identity}.log").open("wb") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            started.append(Replica(identity, process))
        yield {replica.identity: replica for replica in started}
    finally:
        for replica in started:
            with contextlib.suppress(ProcessLookupError):
                replica.send(signal.SIGCONT)
                replica.send(signal.SIGTERM)
        for replica in started:
            replica.process.wait(15)


def holder(server: ApiServerProcess) -> str:
    answer = server.request("GET", LEASE)
    return str(answer.body["spec"].get("holderIdentity") or "") if answer.status == 200 else ""


async def lose_a_node_and_finish(
    server: ApiServerProcess, directory: Path, subnet: int, *, stop_leader: bool
) -> dict[str, Any]:
    """Run a two-node job, lose the node of slot 1, perhaps stop the leader during the fence; what came of it."""
    name = "stopped" if stop_leader else "plain"
    with replicas(server, directory, 2 if stop_leader else 1) as operators:
        async with kubelets(server, ("n1", "n2", "n3"), subnet) as nodes:
            training = nodes.training[name] = Training(total_steps=60)

            def status() -> JobStatus:
                found = status_of(server, name)
                assert found is not None
                return found

            create_job(server, job(name, 2))
            await until("two checkpoints", lambda: len(training.commits) >= 2, 60)
            training.paused = True
            await until("recorded", lambda: status().checkpoint.step == training.commits[-1].step)
            before = {slot.index: slot.pod_uid for slot in status().gang.slots}
            lost = next(slot for slot in status().gang.slots if slot.index == 1)
            assert lost.node is not None
            nodes.silence(lost.node)
            await nodes.set_ready(lost.node, False)
            await until("fencing", lambda: status().gang.phase == GangPhase.FENCING)
            training.paused = False
            if stop_leader:
                first = await asyncio.to_thread(holder, server)
                operators[first].send(signal.SIGSTOP)
                await until("another leads", lambda: holder(server) not in ("", first), 20)
                await until("the new attempt runs", lambda: status().gang.phase == GangPhase.RUNNING)
                operators[first].send(signal.SIGCONT)
            await until("the end", lambda: status().state in (JobState.SUCCEEDED, JobState.FAILED), 60)
            await asyncio.sleep(2.0)  # whatever the stopped one still meant to do
            end = status()
            survivor, replaced = nodes.seen_pods[f"{name}-0"], nodes.seen_pods[f"{name}-1"]
            assert [slot.pod_uid for slot in end.gang.slots] == [survivor[-1], replaced[-1]]
            return {
                "state": end.state,
                "attempt": end.gang.attempt,
                "resumed at": end.gang.resume_from.step if end.gang.resume_from else None,
                "restarts": end.restarts.model_dump(
                    include={"total", "infrastructure", "application", "out_of_memory", "hang", "fruitless", "by_cause"}
                ),
                "slots that kept their pod": [s.index for s in end.gang.slots if s.pod_uid == before[s.index]],
                "pods of slot 0": len(survivor),
                "pods of slot 1": len(replaced),
            }


async def test_a_stopped_leader_changes_nothing(prepared: ApiServerProcess, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    plain = await lose_a_node_and_finish(prepared, tmp_path / "one", 82, stop_leader=False)
    stopped = await lose_a_node_and_finish(prepared, tmp_path / "two", 83, stop_leader=True)
    assert plain["state"] == JobState.SUCCEEDED
    assert plain["attempt"] == 2
    assert plain["slots that kept their pod"] == [0]
    assert (plain["pods of slot 0"], plain["pods of slot 1"]) == (1, 2)
    assert stopped == plain


@pytest.fixture(autouse=True)
def _show_logs(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    yield
    for log in sorted(tmp_path.rglob("replica-*.log")):
        print(f"--- {log.name}\n{log.read_text()[-3000:]}")
