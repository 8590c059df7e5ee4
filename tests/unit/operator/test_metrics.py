"""What the operator says of jobs is true of the present, or not said."""

import asyncio
import contextlib
from typing import Any

import pytest
from kubernetes.aio.client import Configuration
from sim_operator import KEY

from trireme_operator import jobs, metrics
from trireme_operator.apply.api import Api
from trireme_operator.config import OperatorConfig
from trireme_operator.main import Operator


@pytest.fixture(autouse=True)
def _nothing_told_yet() -> None:
    """Gauges belong to the process, and other tests reconcile jobs in it."""
    metrics.clear_jobs()


def told() -> list[str]:
    return [sample.labels["name"] for gauge in metrics.JOB_ATTEMPT.collect() for sample in gauge.samples]


async def operator() -> Operator:
    config = OperatorConfig.parse(["--resync-seconds", "0.01"], environ={})
    return Operator(config, Api(Configuration(host="http://127.0.0.1:1")), b"k" * 32)


async def test_who_no_longer_leads_says_nothing_of_jobs() -> None:
    made = await operator()
    metrics.JOB_ATTEMPT.labels("PretrainJob", "default", "j").set(3)
    assert told() == ["j"]
    made._leader._stop()
    assert told() == []


async def test_a_job_whose_deletion_was_missed_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    made = await operator()
    lists = [[{"metadata": {"namespace": KEY.namespace, "name": KEY.name, "uid": "1", "resourceVersion": "1"}}], []]

    async def list_all(path: str, query: Any = ()) -> list[dict[str, Any]]:
        if path.endswith("pretrainjobs"):
            return lists.pop(0) if lists else []
        return []

    monkeypatch.setattr(made._api, "list_all", list_all)
    metrics.JOB_ATTEMPT.labels(KEY.kind, KEY.namespace, KEY.name).set(3)
    task = asyncio.create_task(made._resync())
    try:
        for _ in range(500):
            if not lists:
                break
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert await asyncio.wait_for(made._queue.get(), 1) == KEY
        assert await made._reconciler._controllers[KEY.kind].reconcile(KEY) is None
        assert told() == []
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_forgetting_what_was_never_told_is_no_error() -> None:
    jobs.forget(KEY)
