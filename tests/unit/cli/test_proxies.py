"""Behind a proxy, this computer is asked directly and others through the proxy."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from trireme.loopback import is_loopback
from trireme.protocol import StoreConfig
from trireme_cli.cluster import Cluster
from trireme_cli.jobs import _DIRECT, Job
from trireme_cli.store import JobStore
from trireme_local.api import ClusterApi, load_configuration
from trireme_local.kube import KubeClient
from trireme_local.s3 import StoreAccess, check_answers
from trireme_operator.apply.api import Api
from trireme_operator.apply.api import load_configuration as operator_configuration
from trireme_storage.store import ObjectStore

# Not 127.0.0.1, which NO_PROXY names on most machines.
ADDRESS = "127.16.0.9"
PROXY = "http://127.0.0.1:9"  # nobody listens there


@pytest.fixture(autouse=True)
def proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, PROXY)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "localhost,127.0.0.1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")


class Handler(BaseHTTPRequestHandler):
    """The same answer for every path."""

    def do_GET(self) -> None:
        body = json.dumps({"kind": "NodeList", "items": []}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer((ADDRESS, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{ADDRESS}:{server.server_address[1]}"
        server.shutdown()


def kubeconfig(folder: Path, server: str, **cluster: str) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server, **cluster}}],
        "users": [{"name": "c", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


def test_the_command_line_asks_an_api_server_on_this_computer_directly(url: str, tmp_path: Path) -> None:
    assert Cluster(kubeconfig(tmp_path, url)).request("GET", "/api/v1/nodes")["items"] == []


async def test_nodes_and_controllers_ask_an_api_server_on_this_computer_directly(url: str, tmp_path: Path) -> None:
    client = await KubeClient.from_kubeconfig(kubeconfig(tmp_path, url), "test")
    try:
        assert (await client.request("GET", "/api/v1/nodes"))["items"] == []
    finally:
        await client.close()


async def test_the_operator_asks_an_api_server_on_this_computer_directly(url: str, tmp_path: Path) -> None:
    api = Api(await operator_configuration(str(kubeconfig(tmp_path, url))))
    try:
        assert (await api.request("GET", "/api/v1/nodes"))["items"] == []
    finally:
        await api.close()


def test_the_local_cluster_asks_its_api_server_and_its_store_directly(url: str, tmp_path: Path) -> None:
    assert ClusterApi(kubeconfig(tmp_path, url)).node_readiness() == {}
    check_answers(StoreAccess(url, "key", "key"))


def test_agents_are_asked_directly(url: str) -> None:
    assert _DIRECT.open(f"{url}/v1/report", timeout=5).status == 200


@pytest.mark.parametrize("by_environment", [False, True], ids=["endpoint-in-spec", "endpoint-in-environment"])
def test_a_store_on_this_computer_is_asked_directly(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_environment: bool
) -> None:
    if by_environment:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    endpoint = None if by_environment else url
    checkpoint = {"uri": "s3://bucket/x", "endpoint": endpoint, "pathStyle": True}
    raw = {"metadata": {"name": "j", "namespace": "default", "uid": "u"}, "spec": {"checkpoint": checkpoint}}
    resource = Cluster(kubeconfig(tmp_path, url))
    assert b"items" in JobStore(resource, Job(None, raw)).read("key")  # type: ignore[arg-type]
    store = ObjectStore(StoreConfig(uri="s3://bucket/x", endpoint=endpoint, path_style=True))
    assert b"items" in store.get("key")


def test_an_api_server_elsewhere_is_asked_through_the_proxy(tmp_path: Path) -> None:
    assert load_configuration(kubeconfig(tmp_path, "https://10.1.2.3:6443")).proxy == PROXY


def test_a_proxy_that_the_kubeconfig_names_counts_for_any_host(tmp_path: Path) -> None:
    tunnel = kubeconfig(tmp_path, "https://127.0.0.1:6443", **{"proxy-url": "http://tunnel:1"})
    assert load_configuration(tunnel).proxy == "http://tunnel:1"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://127.16.0.1:6443", True),
        ("http://localhost:9000", True),
        ("http://[::1]:80/x", True),
        ("https://10.0.0.1", False),
        ("https://127.example.com", False),
        (None, False),
    ],
)
def test_only_this_computer_is_loopback(url: str | None, expected: bool) -> None:
    assert is_loopback(url) is expected
