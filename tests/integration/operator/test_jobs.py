"""The operator's whole loop on a real API server, with nodes and agents that only pretend."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from fake_gang import FakeNodes, Training
from operator_harness import (
    JOBS,
    RULES,
    create_job,
    grant,
    job,
    kubelets,
    running,
    status_of,
    until,
)

from conftest_apiserver import ApiServerProcess
from trireme.resources.status import ConditionType, JobState, JobStatus

THREE = ("n1", "n2", "n3")


def reader(server: ApiServerProcess, name: str) -> Any:
    def read() -> JobStatus:
        found = status_of(server, name)
        assert found is not None
        return found

    return read


def ended(server: ApiServerProcess, *names: str) -> Any:
    return lambda: all(reader(server, name)().completion_time for name in names)


async def test_two_two_node_jobs_on_three_nodes_both_finish(prepared: ApiServerProcess, tmp_path: Path) -> None:
    async with kubelets(prepared, THREE, 84) as nodes, running(prepared, tmp_path):
        for name in ("left", "right"):
            nodes.training[name] = Training(total_steps=40)
            create_job(prepared, job(name, 2, cpu="3"))
        most = await watch_pods_until(prepared, nodes, ended(prepared, "left", "right"))
        for name in ("left", "right"):
            assert reader(prepared, name)().state == JobState.SUCCEEDED
        assert most <= 2, "the second gang created no pod before there was room for all of it"


async def watch_pods_until(server: ApiServerProcess, nodes: FakeNodes, over: Any) -> int:
    """The most pods that were not finished at a time."""
    most, deadline = 0, time.monotonic() + 60
    while not await asyncio.to_thread(over):
        assert time.monotonic() < deadline
        pods = await nodes.call("GET", "/api/v1/namespaces/default/pods")
        alive = [p for p in pods["items"] if p.get("status", {}).get("phase") not in ("Succeeded", "Failed")]
        most = max(most, len(alive))
        await asyncio.sleep(0.1)
    return most


async def test_blind_to_nodes_both_jobs_finish_by_giving_back(prepared: ApiServerProcess, tmp_path: Path) -> None:
    """Without access to nodes each may get a part; the scheduling deadline releases it whole."""
    grant(prepared, {**RULES, "nodes": []})
    timeouts = {"fenceSeconds": 5, "contactTimeoutSeconds": 2, "drainSeconds": 5, "schedulingTimeoutSeconds": 5}
    try:
        async with (
            kubelets(prepared, THREE, 85) as nodes,
            running(prepared, tmp_path, "--namespaces", "default"),
        ):
            for name in ("east", "west"):
                nodes.training[name] = Training(total_steps=40)
                create_job(prepared, job(name, 2, cpu="3", faultTolerance={"timeouts": timeouts}))
            await until("both end", ended(prepared, "east", "west"), 100)
            states = [reader(prepared, name)().state for name in ("east", "west")]
            assert states == [JobState.SUCCEEDED, JobState.SUCCEEDED]
    finally:
        grant(prepared, RULES)


async def test_a_spec_that_cannot_work_is_refused_within_two_seconds(
    prepared: ApiServerProcess, tmp_path: Path
) -> None:
    async with kubelets(prepared, THREE, 86) as nodes, running(prepared, tmp_path):
        create_job(prepared, job("good", 1))
        await until("the operator works", lambda: reader(prepared, "good")().conditions)
        # 3 ranks do not divide a batch of 2: arithmetic that no schema can do.
        manifest = job("bad", 3)
        began = time.monotonic()
        create_job(prepared, manifest)
        read = reader(prepared, "bad")
        await until("a verdict", lambda: read().condition(ConditionType.ACCEPTED), 10)
        assert time.monotonic() - began < 10
        accepted = read().condition(ConditionType.ACCEPTED)
        assert accepted.status == "False"
        assert "3" in accepted.message
        seconds = accepted.last_transition_time.timestamp() - created(prepared, "bad")
        assert seconds <= 2
        await asyncio.sleep(1)
        assert "bad-0" not in nodes.seen_pods


def created(server: ApiServerProcess, name: str) -> float:
    from datetime import datetime

    text = server.request("GET", f"{JOBS}/{name}").body["metadata"]["creationTimestamp"]
    return datetime.fromisoformat(text).timestamp()


async def test_an_operator_that_restarts_goes_on_where_its_predecessor_was(
    prepared: ApiServerProcess, tmp_path: Path
) -> None:
    async with kubelets(prepared, THREE, 87) as nodes:
        training = nodes.training["long"] = Training(total_steps=100)
        async with running(prepared, tmp_path):
            create_job(prepared, job("long", 2))
            await until("a checkpoint", lambda: training.commits)
        await asyncio.sleep(1.0)
        assert training.step > training.commits[0].step, "an operator outage alone stops nothing"
        async with running(prepared, tmp_path):
            await until("the end", ended(prepared, "long"), 60)
        status = reader(prepared, "long")()
        assert status.state == JobState.SUCCEEDED
        assert status.gang.attempt == 1
        assert status.restarts.total == 0
        lived = status.completion_time.timestamp() - created(prepared, "long")
        assert abs(status.time.seconds.total() - lived) < 1.0


async def test_events_tell_the_story(prepared: ApiServerProcess, tmp_path: Path) -> None:
    async with kubelets(prepared, THREE, 88), running(prepared, tmp_path):
        create_job(prepared, job("told", 1))
        await until("the end", ended(prepared, "told"))

        def reasons() -> set[str]:
            events = prepared.request("GET", "/api/v1/namespaces/default/events").body["items"]
            return {e["reason"] for e in events if e["involvedObject"]["name"] == "told"}

        wanted = {"Accepted", "GangForming", "GangReady", "ResumePointRecorded", "CheckpointCommitted", "JobSucceeded"}
        await until("all events", lambda: wanted <= reasons(), 5)


@pytest.fixture(autouse=True)
def _no_jobs_left(prepared: ApiServerProcess) -> Any:
    yield
    for found in prepared.request("GET", JOBS).body["items"]:
        prepared.request("DELETE", f"{JOBS}/{found['metadata']['name']}")
