"""What the operator says of jobs and services is true of the present, or not said."""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

import aiohttp
import pytest
from gang_machine import SPEC
from kubernetes.aio.client import Configuration
from prometheus_client.metrics_core import Metric as Family
from sim_operator import KEY
from sim_scenario import Story

from trireme.metrics import exposition, gauge
from trireme.resources.status import JobState
from trireme_operator import server
from trireme_operator.apply.api import Api
from trireme_operator.collectors import FleetCollector, OwnCollector, layout
from trireme_operator.config import OperatorConfig
from trireme_operator.main import Operator
from trireme_operator.observe.queue import JobKey, WorkQueue
from trireme_operator.permissions import Permission
from trireme_operator.selfcheck import SelfCheck
from trireme_operator.services.model import ServicePolicy
from trireme_operator.services.observe import ServiceWorld

Series = dict[str, float]
SCRAPE_LAG = 0.4
"""Seconds from the last pass to a scrape."""
JOB = 'job_name="j",kind="PretrainJob",namespace="default"'


def series(families: Iterable[Family]) -> Series:
    lines = exposition(families).decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


class Scraped:
    """A story, its operator's series, and the promise that no counter falls."""

    def __init__(self, story: Story) -> None:
        self.story, self.leading = story, True
        services = ServiceWorld(story.operator.world, {}, ServicePolicy())
        self._collector = FleetCollector(
            story.operator.world, services, lambda: self.leading, clock=lambda: story.cluster.now + SCRAPE_LAG
        )
        self._last: Series = {}

    def scrape(self) -> Series:
        self.story.operator.deliver()
        found = series(self._collector.collect())
        for name, value in found.items():
            if name.partition("{")[0].endswith("_total"):
                assert value >= self._last.get(name, 0.0), name
                self._last[name] = value
        return found

    def until(self, what: Any, seconds: int = 200) -> Series:
        for _ in range(seconds):
            found = self.scrape()
            if what():
                return found
            self.story.run()
        raise AssertionError("not in time")


def with_devices() -> Story:
    """A job whose two ranks ask for a device each."""
    accelerator = {"kind": "cpu", "resourceName": "trireme.dev/cpu-rank"}
    return Story(workers={**SPEC["workers"], "accelerator": accelerator})


def test_a_lost_node_shows_in_restarts_lost_seconds_and_devices_and_no_counter_falls() -> None:
    story = with_devices()
    scraped = Scraped(story)
    running = scraped.until(lambda: story.status.gang.phase == "Running" and story.cluster.gang.progress.step >= 8)
    assert running[f'trireme_job_state{{{JOB},state="Running"}}'] == 1
    assert [name for name in running if name.startswith("trireme_job_state")] == [
        f'trireme_job_state{{{JOB},state="Running"}}'
    ]
    assert running[f'trireme_job_devices_requested{{{JOB},resource="trireme.dev/cpu-rank"}}'] == 2
    assert running[f'trireme_job_devices_allocated{{{JOB},resource="trireme.dev/cpu-rank"}}'] == 2
    assert not [name for name in running if "restarts" in name or "lost_seconds" in name]
    story.kill_node_of(1)
    down = scraped.until(lambda: story.status.restarts.total == 1)
    assert down[f'trireme_job_restarts_total{{cause="NodeLost",{JOB}}}'] == 1
    over = scraped.until(lambda: story.status.completion_time)
    scraped.story.run(3)
    over = scraped.scrape()
    lost = over[f'trireme_job_lost_seconds_total{{cause="NodeLost",{JOB}}}']
    record = story.status.restarts.history[-1]
    assert record.caught_up_at is not None
    assert record.lost_before is not None
    assert 0 < lost <= (record.caught_up_at - record.raised_at).total_seconds() + 15
    assert lost == pytest.approx(story.status.time.seconds.lost() - record.lost_before, abs=1.0)
    assert over[f'trireme_job_state{{{JOB},state="Succeeded"}}'] == 1
    assert over[f'trireme_job_devices_requested{{{JOB},resource="trireme.dev/cpu-rank"}}'] == 0
    assert over[f'trireme_job_devices_allocated{{{JOB},resource="trireme.dev/cpu-rank"}}'] == 0
    told = [value for name, value in over.items() if name.startswith("trireme_job_seconds_total") and value]
    total = sum(told)
    assert story.status.completion_time is not None
    age = story.status.completion_time.timestamp() - over[f"trireme_job_created_timestamp_seconds{{{JOB}}}"]
    account = sum(story.status.time.seconds.model_dump().values())
    assert account == pytest.approx(age, abs=1.0)
    assert 0 <= total - account <= SCRAPE_LAG * len(told), "a scrape may run ahead of an interval's end"
    productive = over[f'trireme_job_seconds_total{{category="productive",{JOB}}}']
    assert over[f"trireme_job_goodput_ratio{{{JOB}}}"] == pytest.approx(productive / account)


def test_checkpoints_and_what_the_job_is_are_told_from_its_status() -> None:
    story = Story()
    scraped = Scraped(story)
    found = scraped.until(lambda: story.status.checkpoint.step is not None and story.status.checkpoint.step >= 6)
    saved = story.status.checkpoint
    assert saved.committed_at is not None
    assert found[f"trireme_checkpoint_last_committed_step{{{JOB}}}"] == saved.step
    assert found[f"trireme_checkpoint_last_success_timestamp_seconds{{{JOB}}}"] == saved.committed_at.timestamp()
    assert found[f"trireme_checkpoint_commits_total{{{JOB}}}"] == saved.committed_count
    (info,) = (name for name in found if name.startswith("trireme_job_info"))
    assert 'engine="megatron"' in info
    assert 'image="trainer"' in info
    assert 'model="tinyllama-1.1b"' in info
    assert "tensor=" in info


def test_what_a_replica_does_not_lead_it_does_not_tell() -> None:
    story = Story()
    scraped = Scraped(story)
    scraped.until(lambda: story.status.state == JobState.RUNNING)
    scraped.leading = False
    assert scraped.scrape() == {}


def test_a_job_that_is_gone_has_no_series() -> None:
    story = Story()
    scraped = Scraped(story)
    assert scraped.scrape()
    story.operator.world.jobs["PretrainJob"].handle("DELETED", story.cluster.job)
    assert scraped.scrape() == {}


def test_a_job_of_the_same_name_begins_its_counters_anew() -> None:
    story = Story()
    scraped = Scraped(story)
    scraped.until(lambda: story.status.checkpoint.committed_count >= 2)
    jobs = story.operator.world.jobs["PretrainJob"]
    jobs.handle("DELETED", story.cluster.job)
    metadata = {**story.cluster.job["metadata"], "uid": "job-2", "resourceVersion": "900000"}
    jobs.handle("ADDED", {**story.cluster.job, "metadata": metadata, "status": {}})
    scraped._last.clear()
    assert scraped.scrape()[f"trireme_checkpoint_commits_total{{{JOB}}}"] == 0


def service(**status: Any) -> dict[str, Any]:
    return {
        "kind": "InferenceService",
        "metadata": {
            "namespace": "default",
            "name": "llama",
            "uid": "s1",
            "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "model": {"job": {"kind": "FineTuneJob", "name": "chat"}},
            "task": "completion",
            "replicas": 2,
            "adapters": [{"name": "fr", "uri": "s3://b/fr"}, {"name": "de", "uri": "s3://b/de"}],
            "pods": {"accelerator": {"kind": "h100-sxm"}, "devices": 4, "image": "serving:1"},
        },
        "status": status,
    }


def test_services_tell_replicas_adapters_and_devices() -> None:
    story = Story()
    services = ServiceWorld(story.operator.world, {}, ServicePolicy())
    loaded = [{"name": "fr", "uri": "s3://b/fr"}]
    pods = [{"name": "llama-1", "revision": "r", "adapters": loaded}, {"name": "llama-2", "revision": "r"}]
    services.services.replace([service(state="Degraded", readyReplicas=1, pods=pods)], set())
    found = series(FleetCollector(story.operator.world, services, lambda: True).collect())
    of = 'namespace="default",service_name="llama"'
    assert found[f'trireme_service_state{{{of},state="Degraded"}}'] == 1
    assert found[f"trireme_service_wanted_replicas{{{of}}}"] == 2
    assert found[f"trireme_service_ready_replicas{{{of}}}"] == 1
    assert found[f'trireme_service_adapter_replicas{{adapter="fr",{of}}}'] == 1
    assert found[f'trireme_service_adapter_replicas{{adapter="de",{of}}}'] == 0
    assert found[f'trireme_service_info{{image="serving:1",model="FineTuneJob/chat",{of}}}'] == 1
    devices = 'namespace="default",resource="nvidia.com/gpu",service_name="llama"'
    assert found[f"trireme_service_devices_requested{{{devices}}}"] == 8
    assert found[f"trireme_service_devices_allocated{{{devices}}}"] == 0
    assert found['trireme_cluster_devices_allocatable{resource="nvidia.com/gpu"}'] == 0


def test_the_layout_names_the_axes_that_a_plan_has() -> None:
    assert layout({"tensor": 2, "pipeline": 1, "data": 4, "context": 1, "zeroStage": 1, "engine": "megatron"}) == (
        "tensor=2,pipeline=1,data=4,context=1,zero=1"
    )
    assert layout({"data": 8, "zeroStage": 0}) == "data=8"


async def test_the_queue_tells_how_many_are_due_and_since_when() -> None:
    queue = WorkQueue()
    assert queue.waiting() == (0, 0.0)
    queue.add(JobKey("PretrainJob", "default", "later"), 60.0)
    assert queue.waiting() == (0, 0.0)
    queue.add(KEY, -5.0)
    queue.add(JobKey("PretrainJob", "default", "now"))
    depth, age = queue.waiting()
    assert depth == 2
    assert 5.0 <= age < 6.0
    await queue.get()
    assert queue.waiting()[1] < 5.0


async def test_the_process_tells_its_own_state() -> None:
    check = SelfCheck(Api(Configuration(host="http://127.0.0.1:1")), (), "trireme-system")
    check.missing = {Permission("", "pods", "list"): [""]}
    check.mismatched = {"rlhfjobs": True, "pretrainjobs": False}
    found = series(OwnCollector(WorkQueue(), check, lambda: False).collect())
    assert found['trireme_operator_missing_permission{group="",resource="pods",verb="list"}'] == 1
    assert found['trireme_operator_crd_mismatch{resource="rlhfjobs"}'] == 1
    assert found['trireme_operator_crd_mismatch{resource="pretrainjobs"}'] == 0
    assert found["trireme_operator_ready"] == 0
    assert [name for name in found if name.startswith("trireme_operator_build_info{version=")]


async def test_readiness_says_why_not() -> None:
    wrong = ["", "missing permission: list pods"]
    known = gauge("one", "One.").family([((), 1.0)])
    runner, port = await server.serve("127.0.0.1", 0, lambda: [known], lambda: "", lambda: wrong[-1])
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", trust_env=False) as session:

            async def get(path: str) -> tuple[int, str]:
                async with session.get(path) as answer:
                    return answer.status, await answer.text()

            assert await get("/readyz") == (503, "not ok: missing permission: list pods")
            wrong.pop()
            assert await get("/readyz") == (200, "ok")
            assert await get("/healthz") == (200, "ok")
            assert "one 1.0" in (await get("/metrics"))[1]
    finally:
        await runner.cleanup()


async def test_a_job_whose_deletion_was_missed_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    config = OperatorConfig.parse(["--resync-seconds", "0.01"], environ={})
    made = Operator(config, Api(Configuration(host="http://127.0.0.1:1")), (b"k" * 32,))
    lists = [[{"metadata": {"namespace": KEY.namespace, "name": KEY.name, "uid": "1", "resourceVersion": "1"}}], []]

    async def list_all(path: str, query: Any = ()) -> list[dict[str, Any]]:
        if path.endswith("pretrainjobs"):
            return lists.pop(0) if lists else []
        return []

    monkeypatch.setattr(made._api, "list_all", list_all)
    task = asyncio.create_task(made._resync())
    try:
        for _ in range(500):
            if not lists:
                break
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert await asyncio.wait_for(made._queue.get(), 1) == KEY
        assert await made._reconciler._controllers[KEY.kind].reconcile(KEY) is None
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
