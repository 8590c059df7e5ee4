"""All that dashboards and alerts ask for is there: a real Prometheus, jobs of all kinds, a service, real faults."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from product import Product, TestedJob, wait_for
from prometheus_api import Prometheus
from small_jobs import Examples, align, finetune
from test_serving import START_SECONDS, Released, TestedService, manifest
from tiny_job import tiny_job

import fake_nvml
from promql_queries import BASE, FILES, TARGET_LABELS, Asked, dashboards, marks, panels, queries, rules, selectors
from trireme.resources.inference_status import ServiceState
from trireme.resources.status import JobState
from trireme_cli.install import ACCOUNT, install_into, start_operator
from trireme_trainer.metrics.definitions import DEVICE_GROUP

Json = dict[str, Any]
pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

TESTS = Path(__file__).parents[1]
CURVES, TAUGHT = "curves", "taught"
ALGORITHMS = ("dpo", "reward", "grpo", "ppo")
CHAT = "chat"
# Nothing on this computer has such devices: their panels are fed by recorded answers of NVIDIA's driver.
DEVICE_PANELS = {
    "fleet: Mean use of devices",
    "job: Device use",
    "job: Device memory",
    "job: Power",
    "job: Temperature",
    "job: Clock",
    "job: Throttled",
    "job: Memory errors",
    "job: XID errors",
    "job: Devices",
}
FOR_SECONDS = 4
"""How long something has to be wrong here until an alert fires; as shipped it is minutes."""


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@dataclass
class Monitored:
    """An installation with a Prometheus, and what happened while it looked."""

    product: Product
    prometheus: Prometheus
    operator_port: int
    begun: float
    ended: float = 0.0

    def operator(self) -> None:
        """Start the operator where Prometheus looks for it."""
        made = start_operator(self.product.cluster, self.product.directory / "operator", http_port=self.operator_port)
        self.product.operators.append(made)

    def stop_operators(self) -> None:
        for operator in list(self.product.operators):
            self.product.kill_operator(operator)

    def wait_value(self, expr: str, seconds: float = 120) -> None:
        """Until a query has a result."""
        wait_for(expr, lambda: self.prometheus.value(expr) is not None, seconds, every=1)

    def wait_firing(self, alert: str, *, fires: bool = True, **labels: str) -> None:
        """Until an alert fires for these labels, or no longer does."""
        what = f"{alert} {labels} {'fires' if fires else 'clears'}"
        wait_for(what, lambda: bool(self.prometheus.firing(alert, **labels)) == fires, 120, every=1)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """What the driver answers in pods that are told of it."""
    return shutil.copy(fake_nvml.RECORDING, tmp_path / "nvml.json")


@pytest.fixture
def monitored(product: Product, prometheus_program: str) -> Iterator[Monitored]:
    port = free_port()
    product.local.up(nodes=product.nodes, prometheus=True, scrape=[f"127.0.0.1:{port}"], say=lambda text: None)
    made = Monitored(product, Prometheus(product.local.prometheus_url), port, time.time())
    made.stop_operators()
    made.operator()
    impatient(product)
    try:
        yield made
    finally:
        product.kubectl("delete", "inferenceservices", "--all", "--wait=false")
        product.local.up(nodes=product.nodes, prometheus=False, say=lambda text: None)


def impatient(product: Product) -> None:
    """Have Prometheus evaluate the chart's rules, as they are but for the time that each has to hold."""
    folder = product.local.directory / "prometheus"
    content = yaml.safe_load((FILES / "rules" / "alerts.yaml").read_text())
    for rule in content["groups"][0]["rules"]:
        rule["for"] = f"{FOR_SECONDS}s" if rule["for"] != "0m" else "0m"
    (folder / "alerts.yaml").write_text(yaml.safe_dump(content))
    config = yaml.safe_load((folder / "prometheus.yml").read_text())
    config["global"]["evaluation_interval"] = "1s"
    config["rule_files"] = [str(folder / "alerts.yaml")]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    process = product.local.state().daemons["prometheus"].find()
    assert process is not None
    process.send_signal(signal.SIGHUP)


def apply_service(product: Product, given: Json) -> TestedService:
    product.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(given))
    return TestedService(product, given["metadata"]["name"])


def test_every_query_finds_what_it_asks_for_and_alerts_fire_and_clear(
    monitored: Monitored, undisturbed: TestedJob, recording: Path
) -> None:
    product, released = monitored.product, Released(monitored.product)
    examples = Examples(product.directory / "small")
    curves = train_through_an_outage_and_a_lost_node(monitored, recording)
    served = manifest(product, CHAT, released.uri("base"), adapters=[{"name": "fr", "uri": released.uri("fr")}])
    chat = apply_service(product, served)
    later = [product.apply(finetune(TAUGHT, undisturbed.name, examples))]
    later += [product.apply(align(algorithm, undisturbed.name, examples)) for algorithm in ALGORITHMS]
    what_cannot_work_alerts_and_clears(monitored)
    for job in [curves, *later]:
        job.wait_state(JobState.SUCCEEDED)
    ask(chat)
    losing_rights_shows(monitored)
    a_dead_operator_alerts_and_clears(monitored)
    monitored.ended = time.time()
    nothing_is_asked_for_in_vain(monitored)


def train_through_an_outage_and_a_lost_node(monitored: Monitored, recording: Path) -> TestedJob:
    """A job with devices that fail a little, whose saves fail for a while, and which loses a node; it trains on."""
    product = monitored.product
    env = {"PYTHONPATH": str(TESTS / "nvml_site"), "FAKE_NVML_RECORDING": str(recording)}
    changes: Json = {"training__validationIntervalSteps": 50, "checkpoint__intervalSteps": 20}
    changes["workers__env"] = [{"name": name, "value": value} for name, value in env.items()]
    curves = product.apply(tiny_job(CURVES, nodes=2, devices=1, steps=1500, **changes))
    curves.wait_committed()
    told = json.loads(recording.read_text())
    told["devices"][0] |= {"xids": [79], "clocksEventReasons": 0x40}
    recording.write_text(json.dumps(told))
    monitored.wait_value(f'trireme_device_xid_errors_total{{job_name="{CURVES}"}}')
    product.store_process().kill()
    monitored.wait_value(f'trireme_checkpoint_failing{{job_name="{CURVES}"}}')
    monitored.wait_value(f'trireme_checkpoint_failures_total{{job_name="{CURVES}"}}')
    product.local.up(nodes=product.nodes, say=lambda text: None)
    wait_for("saves reach the store", lambda: curves.condition("CheckpointHealthy")[0] == "True", 60)
    lost = curves.node_of(1)
    product.local.kill_node(lost)
    monitored.wait_value(f'trireme_job_restarts_total{{job_name="{CURVES}", cause="NodeLost"}}')
    product.local.revive_node(lost)
    return curves


def what_cannot_work_alerts_and_clears(monitored: Monitored) -> None:
    """A job without room, a service without devices, one without a model, and a job that diverges."""
    product = monitored.product
    roomless = product.apply(
        tiny_job("roomless", nodes=product.nodes + 1, devices=1, training__globalBatchSize=product.nodes + 1)
    )
    diverging = product.apply(
        tiny_job(
            "diverging",
            devices=1,
            layout={"tensor": 1},
            training__optimizer={"learningRate": 10.0, "weightDecay": 10.0, "eps": 1e-8},
            training__gradientClip=0,
            training__schedule={"kind": "constant", "warmupSteps": 0},
        )
    )
    of_gpus = manifest(product, "gpus", "s3://trireme/nowhere")
    of_gpus["spec"]["pods"] |= {"accelerator": {"kind": "h100-sxm"}, "devices": 1}
    waiting = manifest(product, "waiting", "")
    waiting["spec"]["model"] = {"job": {"kind": "PretrainJob", "name": "never"}}
    for given in (of_gpus, waiting):
        apply_service(product, given)
    monitored.wait_firing("TriremePendingTooLong", job_name="roomless")
    monitored.wait_firing("TriremeServiceNotReady", service_name="gpus", severity="critical")
    monitored.wait_firing("TriremeNaNLoss", job_name="diverging")
    assert not monitored.prometheus.firing("TriremeServiceNotReady", service_name="waiting")
    for job in (roomless, diverging):
        job.delete()
        product.jobs.pop(job.name)
    product.kubectl("delete", "inferenceservice", "gpus", "waiting", "--wait=false")
    monitored.wait_firing("TriremePendingTooLong", fires=False, job_name="roomless")
    monitored.wait_firing("TriremeServiceNotReady", fires=False, service_name="gpus")
    monitored.wait_firing("TriremeNaNLoss", fires=False, job_name="diverging")


def ask(chat: TestedService) -> None:
    """Enough requests for a rate: two scrapes apart, the same prompt again."""
    chat.wait_state(ServiceState.READY, START_SECONDS)
    for _ in range(8):
        assert chat.answer(CHAT)
        time.sleep(2)


def losing_rights_shows(monitored: Monitored) -> None:
    """A role that somebody changed: passes over jobs fail, and the permission is named as missing."""
    product = monitored.product
    role = json.loads(product.kubectl("get", "clusterrole", ACCOUNT, "-o", "json"))
    role["rules"] = [rule for rule in role["rules"] if "pretrainjobs/status" not in rule["resources"]]
    product.kubectl("replace", "-f", "-", stdin=json.dumps(role))
    job = product.apply(tiny_job("unheard", devices=1))
    monitored.wait_value("trireme_operator_missing_permission")
    monitored.wait_value("trireme_operator_reconcile_errors_total")
    job.delete()
    install_into(product.cluster)
    wait_for(
        "the permission is back",
        lambda: monitored.prometheus.value("trireme_operator_missing_permission") is None,
        60,
        every=1,
    )


def a_dead_operator_alerts_and_clears(monitored: Monitored) -> None:
    monitored.stop_operators()
    monitored.wait_firing("TriremeOperatorDeaf")
    monitored.operator()
    monitored.wait_firing("TriremeOperatorDeaf", fires=False)


def nothing_is_asked_for_in_vain(monitored: Monitored) -> None:
    """Every query of every panel, mark and rule had data, and every series the labels that it is asked by."""
    asked_of_devices, empty, unknown = set(), [], []
    devices = {metric.name for metric in DEVICE_GROUP.metrics}
    for name, board in dashboards().items():
        all_queries = [*marks(board, name), *(query for panel in panels(board) for query in queries(panel, name))]
        for query in all_queries:
            texts = [query.filled(values) for values in choices(name)]
            if not any(monitored.prometheus.has_data(text, monitored.begun, monitored.ended) for text in texts):
                empty.append(f"{query.where}: {texts[0]}")
            if any(BASE[selector.name].name in devices for selector in selectors(texts[0])):
                asked_of_devices.add(query.where)
            unknown += [f"{query.where}: {found}" for found in missing(monitored, query, texts)]
    for rule in rules():
        query = Asked(rule["alert"], rule["expr"])
        unknown += [f"{query.where}: {found}" for found in missing(monitored, query, [query.expr])]
    assert empty == []
    assert unknown == []
    assert asked_of_devices == DEVICE_PANELS


def choices(board: str) -> list[dict[str, str]]:
    """What may be chosen at the top of a dashboard; where one job is, each of those that measure different things."""
    everything = {"instance": ".*", "namespace": "default", "job": ".*", "kind": ".*", "service": ".*"}
    one = {"job": (CURVES, TAUGHT), "rlhf": ALGORITHMS}.get(board)
    return [everything | {"job": job} for job in one] if one else [everything]


def missing(monitored: Monitored, query: Asked, texts: list[str]) -> list[str]:
    """Selectors of a query that find no series with the labels that the query's text names."""
    found: list[str] = []
    variants = [selectors(text) for text in texts]
    for same in zip(*variants, strict=True):
        span = (monitored.begun, monitored.ended)
        series = [labels for selector in same for labels in monitored.prometheus.labels(plain(selector), *span)]
        metric = BASE[same[0].name]
        named = {label for label in metric.labels if f"{label}," in query.expr or f"{label})" in query.expr}
        lacking = (named - TARGET_LABELS) - set().union(*series)
        if not series or lacking:
            found.append(f"{plain(same[0])} {sorted(lacking)}".strip())
    return found


def plain(selector: Any) -> str:
    """A selector without its offset."""
    matchers = ", ".join(str(matcher) for matcher in selector.matchers.matchers)
    return f"{selector.name}{{{matchers}}}"
