"""A real Prometheus finds the operator and the pods of a running job, and has what docs/metrics.md says of them."""

import json
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from product import Product, wait_for
from tiny_job import tiny_job

from conftest import NODES
from trireme.metrics import Metric, MetricType
from trireme_operator import metrics as operator
from trireme_trainer.metrics import definitions as trainer

TESTS = Path(__file__).resolve().parents[1]
ENDLESS = 1_000_000
SCRAPED_SECONDS = 60.0
JOB = '{namespace="default",job_name="scraped",kind="PretrainJob"}'
DEVICES = {  # a driver that answers as one did
    "PYTHONPATH": str(TESTS / "nvml_site"),
    "FAKE_NVML_RECORDING": str(TESTS / "nvml_recording.json"),
}


@dataclass(frozen=True)
class Prometheus:
    """Asked as its users ask it."""

    url: str

    def get(self, path: str, **query: str) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def ask(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series that a query gives."""
        found = self.get("query", query=expression)["result"]
        return [(series["metric"], float(series["value"][1])) for series in found]

    def wait(self, expression: str, count: int = 1) -> list[tuple[dict[str, str], float]]:
        """The series, as soon as there are so many."""

        def look() -> list[tuple[dict[str, str], float]] | None:
            found = self.ask(expression)
            return found if len(found) == count else None

        series: list[tuple[dict[str, str], float]] = wait_for(f"{count} series of {expression}", look, SCRAPED_SECONDS)
        return series

    def names(self) -> set[str]:
        """Names of all metrics that it has."""
        return set(self.get("label/__name__/values"))


@pytest.fixture
def prometheus(product: Product, prometheus_program: str) -> Iterator[Prometheus]:
    """One beside the installation, told where the operator listens: it is no pod here."""
    process = psutil.Process(product.operators[0].process.pid)

    def listening() -> list[int]:
        sockets = process.net_connections("tcp4")
        return [socket.laddr.port for socket in sockets if socket.status == psutil.CONN_LISTEN]

    (port,) = wait_for("the operator's port", listening, 30)
    product.local.up(nodes=NODES, prometheus=True, scrape=[f"127.0.0.1:{port}"], say=lambda text: None)
    yield Prometheus(product.local.prometheus_url)
    product.local.up(nodes=NODES, prometheus=False, say=lambda text: None)


def missing(metrics: tuple[Metric, ...], names: set[str]) -> list[str]:
    """Metrics that every job has, and Prometheus has not."""
    needed = [metric for metric in metrics if not metric.optional]
    told = {m.name: f"{m.name}_count" if m.type is MetricType.HISTOGRAM else m.name for m in needed}
    return [name for name, series in told.items() if series not in names]


def test_a_prometheus_has_the_operator_and_every_pod_of_a_running_job(product: Product, prometheus: Prometheus) -> None:
    env = [{"name": name, "value": value} for name, value in DEVICES.items()]
    job = product.apply(
        tiny_job("scraped", nodes=2, devices=1, steps=ENDLESS, workers__env=env, checkpoint__intervalSteps=100)
    )
    job.wait_committed()
    slots = {slot.node for slot in job.status.gang.slots}

    targets = prometheus.wait('up{job="kubernetes-pods"} == 1', 2)
    assert {labels["pod"] for labels, _ in targets} == {"scraped-0", "scraped-1"}
    assert {labels["node"] for labels, _ in targets} == slots
    assert {labels["namespace"] for labels, _ in targets} == {"default"}
    assert all(labels["instance"].endswith(":9464") for labels, _ in targets), "not the agent's own port"

    # One pod speaks for the job; each of its own ranks and devices.
    ((of_loss, loss),) = prometheus.wait(f"trireme_train_loss{JOB}")
    assert of_loss["pod"] == "scraped-0"
    assert 0 < loss < 10
    assert len(prometheus.wait(f"trireme_agent_ranks_alive{JOB} == 1", 2)) == 2
    skews = prometheus.wait(f"trireme_rank_step_skew_seconds{JOB}", 2)
    assert {labels["rank"] for labels, _ in skews} == {"0", "1"}
    powers = prometheus.wait(f'trireme_device_power_watts{JOB} * on(pod, device) group_left(product) '
                             'trireme_device_info{product="NVIDIA A10G"}', 2)  # fmt: skip
    assert {value for _, value in powers} == {25.58}
    prometheus.wait(f'trireme_step_part_duration_seconds_count{{part="checkpoint",{JOB.strip("{}")}}}')
    parts = {labels["part"] for labels, _ in prometheus.ask(f"trireme_step_part_duration_seconds_count{JOB}")}
    assert {"data", "forwardBackward", "optimizer", "other", "checkpoint"} <= parts

    # The operator's series of the job have the job's namespace and not its own.
    prometheus.wait(f'trireme_job_state{{state="Running",{JOB.strip("{}")}}} == 1')
    ((_, age),) = prometheus.ask(f"sum(trireme_job_seconds_total{JOB})")
    ((_, since),) = prometheus.ask(f"timestamp(trireme_job_created_timestamp_seconds{JOB}) - "
                                   f"trireme_job_created_timestamp_seconds{JOB}")  # fmt: skip
    assert 0 < age <= since + 2
    ((_, goodput),) = prometheus.wait(f"trireme_job_goodput_ratio{JOB} > 0")
    assert goodput <= 1
    assert prometheus.ask("trireme_operator_leader")[0][1] == 1
    assert prometheus.ask("trireme_operator_ready")[0][1] == 1
    assert prometheus.ask("trireme_operator_missing_permission") == []
    assert {value for _, value in prometheus.ask("trireme_operator_crd_mismatch")} == {0.0}

    # Both tell of the first checkpoint, and have moved on at a later scrape.
    prometheus.wait(f"trireme_checkpoint_bytes{JOB} > 0")
    prometheus.wait(f"trireme_checkpoint_commits_total{JOB} > 0")
    wait_for("a later step", lambda: prometheus.ask(f"increase(trireme_train_tokens_total{JOB}[1m]) > 0"), 30)
    names = prometheus.names()
    needed = (*trainer.JOB_GROUP.metrics, *trainer.POD_GROUP.metrics, *operator.JOB_GROUP.metrics)
    assert missing((*needed, *operator.OPERATOR_GROUP.metrics), names) == []
