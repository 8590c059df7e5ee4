"""What the local cluster's Prometheus is told to scrape: as Prometheus' own discovery of pods would say it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from trireme_local import daemons, discovery, prometheus
from trireme_local.cluster import LocalCluster
from trireme_local.errors import ClusterError
from trireme_local.prometheus import LocalPrometheus
from trireme_local.s3 import StoreAccess
from trireme_local.state import ClusterState

META = "__meta_kubernetes_"


def pod(**changes: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "j-0",
            "namespace": "team",
            "uid": "u-1",
            "labels": {"trireme.dev/job-name": "j"},
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "9464"},
            "ownerReferences": [
                {"kind": "Note", "name": "n"},
                {"kind": "PretrainJob", "name": "j", "controller": True},
            ],
        },
        "spec": {
            "nodeName": "node-1",
            "containers": [
                {
                    "name": "trainer",
                    "image": "trainer:1",
                    "ports": [
                        {"name": "agent", "containerPort": 7070, "protocol": "TCP"},
                        {"name": "metrics", "containerPort": 9464, "protocol": "TCP"},
                    ],
                }
            ],
        },
        "status": {
            "phase": "Running",
            "podIP": "127.16.1.2",
            "hostIP": "127.16.1.1",
            "conditions": [{"type": "Ready", "status": "True"}],
        },
        **changes,
    }


def test_each_declared_port_is_a_target_with_the_pods_facts_as_labels() -> None:
    agent, metrics = discovery.targets([pod()])
    assert agent["targets"] == ["127.16.1.2:7070"]
    assert metrics["targets"] == ["127.16.1.2:9464"]
    assert metrics["labels"] == {
        f"{META}namespace": "team",
        f"{META}pod_name": "j-0",
        f"{META}pod_uid": "u-1",
        f"{META}pod_ip": "127.16.1.2",
        f"{META}pod_host_ip": "127.16.1.1",
        f"{META}pod_node_name": "node-1",
        f"{META}pod_phase": "Running",
        f"{META}pod_ready": "true",
        f"{META}pod_controller_kind": "PretrainJob",
        f"{META}pod_controller_name": "j",
        f"{META}pod_label_trireme_dev_job_name": "j",
        f"{META}pod_labelpresent_trireme_dev_job_name": "true",
        f"{META}pod_annotation_prometheus_io_scrape": "true",
        f"{META}pod_annotationpresent_prometheus_io_scrape": "true",
        f"{META}pod_annotation_prometheus_io_port": "9464",
        f"{META}pod_annotationpresent_prometheus_io_port": "true",
        f"{META}pod_container_name": "trainer",
        f"{META}pod_container_image": "trainer:1",
        f"{META}pod_container_init": "false",
        f"{META}pod_container_port_number": "9464",
        f"{META}pod_container_port_name": "metrics",
        f"{META}pod_container_port_protocol": "TCP",
    }


def test_a_container_without_ports_is_one_target_and_an_init_container_says_that_it_is_one() -> None:
    spec = {"containers": [{"name": "a"}], "initContainers": [{"name": "b", "ports": [{"containerPort": 80}]}]}
    first, second = discovery.targets([pod(spec=spec, status={"podIP": "fd00::1"})])
    assert first["targets"] == ["[fd00::1]"]
    assert f"{META}pod_container_port_number" not in first["labels"]
    assert first["labels"][f"{META}pod_ready"] == "unknown"
    assert second["targets"] == ["[fd00::1]:80"]
    assert second["labels"][f"{META}pod_container_init"] == "true"


def test_a_pod_without_an_address_is_no_target() -> None:
    assert discovery.targets([pod(status={"phase": "Pending"}), pod(status={})]) == []


def test_the_file_is_replaced_at_once_and_nothing_else_is_left(tmp_path: Path) -> None:
    file = tmp_path / "targets" / "pods.json"
    discovery.write(file, discovery.targets([pod()]))
    discovery.write(file, [])
    assert json.loads(file.read_text()) == []
    assert list(file.parent.iterdir()) == [file]


def state(**changes: Any) -> ClusterState:
    return ClusterState("c", 20, 8.0, StoreAccess("http://127.20.0.2:9000", "a", "b"), **changes)


def test_a_cluster_has_a_prometheus_only_where_one_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus.shutil, "which", lambda name: f"/usr/bin/{name}")
    without = daemons.commands(tmp_path, state())
    found = daemons.commands(tmp_path, state(prometheus=True, scraped=["127.0.0.1:8080"]))
    assert found.keys() - without.keys() == {"prometheus", "discovery"}
    command, _ = found["prometheus"]
    assert command[0] == "/usr/bin/prometheus"
    assert "--web.listen-address=127.20.0.4:19090" in command
    (configured,) = [word.partition("=")[2] for word in command if word.startswith("--config.file=")]
    pods, others = yaml.safe_load(Path(configured).read_text())["scrape_configs"]
    (told,) = others["file_sd_configs"][0]["files"]
    assert json.loads(Path(told).read_text()) == [{"targets": ["127.0.0.1:8080"]}]
    watching, _ = found["discovery"]
    assert pods["file_sd_configs"][0]["files"] == [watching[-1]]


def test_without_the_program_nothing_is_started_and_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus.shutil, "which", lambda name: None)
    cluster = LocalCluster(tmp_path / "c")
    with pytest.raises(ClusterError, match="apt-get install prometheus"):
        cluster.up(nodes=1, prometheus=True)
    assert not cluster.directory.exists()


def test_a_prometheus_that_does_not_answer_is_said_with_its_address(tmp_path: Path) -> None:
    assert "http://127.0.0.1:1 is not ready" in LocalPrometheus(tmp_path, "127.0.0.1", 1).problem()
