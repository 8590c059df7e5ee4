"""Fixtures with a local API server: a process of its own on an ephemeral port, stopped at the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from trireme_local import control_plane
from trireme_local.apiserver.admission import SYSTEM_NAMESPACES
from trireme_local.control_plane import RealControlPlane

START_TIMEOUT_SECONDS = 60.0
POLL_SECONDS = 0.03


class Answer:
    """Status, decoded body and headers of one response."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.status, self.raw, self.headers = status, body, headers

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


@dataclass
class ApiServerProcess:
    """A running local API server."""

    data_dir: Path
    process: subprocess.Popen[bytes]
    port: int = 0
    _context: ssl.SSLContext | None = field(default=None, repr=False)

    @property
    def kubeconfig(self) -> Path:
        return self.data_dir / "admin.kubeconfig"

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        return str(yaml.safe_load(self.kubeconfig.read_text())["users"][0]["user"]["token"])

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        accept: str = "application/json",
        token: str | None = None,
        headers: dict[str, str] | None = None,
        timeout_seconds: float = 20,
    ) -> Answer:
        """One HTTP request as the admin, or with another bearer token ("" for none)."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        token = self.token if token is None else token
        sent = {"Accept": accept, **(headers or {})}
        if token:
            sent["Authorization"] = f"Bearer {token}"
        if data is not None:
            sent["Content-Type"] = content_type
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=sent)
        try:
            with urllib.request.urlopen(request, timeout=timeout_seconds, context=self._tls()) as response:
                return Answer(response.status, response.read(), dict(response.headers))
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read(), dict(error.headers))

    def _tls(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = ssl.create_default_context(cafile=str(self.data_dir / "pki" / "ca.crt"))
        return self._context

    def watch(self, path: str, accept: str = "application/json") -> Iterator[dict[str, Any]]:
        """The events of a watch, as they come."""
        sent = {"Accept": accept, "Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(self.url + path, headers=sent)
        with urllib.request.urlopen(request, context=self._tls(), timeout=30) as response:
            for line in response:
                yield json.loads(line)

    def ready(self) -> bool:
        """Whether the server answers."""
        try:
            return self.request("GET", "/readyz", timeout_seconds=2).status == 200
        except (OSError, urllib.error.URLError):
            return False

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl against this server; returns its output, both streams together."""
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig), "HOME": str(self.data_dir)}
        done = subprocess.run(
            ["kubectl", *arguments], input=stdin, env=environment, capture_output=True, text=True, timeout=60
        )
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the process and wait for it."""
        if self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(timeout=10)


def eventually(look: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The first true answer of `look`; a real server applies roles, kinds and deletions a moment after the write."""
    deadline = time.monotonic() + seconds
    while not (value := look()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(POLL_SECONDS)
    return value


def establish(server: ApiServerProcess, crd: dict[str, Any]) -> None:
    """Create a CustomResourceDefinition where there is none, and wait until its kind is served and discovered."""
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    answer = server.request("POST", definitions, crd)
    assert answer.status in (201, 409), answer.raw

    def served() -> bool:
        status = server.request("GET", f"{definitions}/{crd['metadata']['name']}").body["status"]
        true = [item["type"] for item in status.get("conditions") or () if item["status"] == "True"]
        path = f"/apis/{crd['spec']['group']}/{crd['spec']['versions'][0]['name']}"
        plural = crd["spec"]["names"]["plural"]
        if "Established" not in true or server.request("GET", f"{path}/{plural}").status != 200:
            return False
        listed = server.request("GET", path)
        return listed.status == 200 and plural in [item["name"] for item in listed.body["resources"]]

    eventually(served)


def start_apiserver(data_dir: Path, port: int = 0) -> ApiServerProcess:
    """Start a server over `data_dir` and wait until it answers."""
    (data_dir / "port").unlink(missing_ok=True)
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "trireme_local.apiserver", "--data-dir", str(data_dir), "--port", str(port)],
            stdout=log,
            stderr=log,
        )
    server = ApiServerProcess(data_dir, process)
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    try:
        while time.monotonic() < deadline and process.poll() is None:
            if (data_dir / "port").exists():
                server.port = int((data_dir / "port").read_text())
                if server.ready():
                    return server
            time.sleep(POLL_SECONDS)
        raise RuntimeError(f"the API server did not start: {(data_dir / 'log').read_text()}")
    except BaseException:  # also a test's timeout: nobody else knows of the process yet
        server.stop(signal.SIGKILL)
        raise


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RealApiServerProcess(ApiServerProcess):
    """A real kube-apiserver with its own etcd, without the controllers that fill namespaces."""

    etcd: subprocess.Popen[bytes] | None = None

    def request(self, method: str, path: str, body: Any = None, **how: Any) -> Answer:
        answer = super().request(method, path, body, **how)
        if (method, path.partition("?")[0], answer.status) == ("POST", "/api/v1/namespaces", 201):
            self.fill(answer.body["metadata"]["name"])
        return answer

    def fill(self, namespace: str) -> None:
        """Make the namespace's default service account, without which no pod is admitted."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        answer = self.request("POST", path, {"metadata": {"name": "default"}})
        assert answer.status in (201, 409), answer.raw

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        # It waits up to a minute for requests that are open.
        super().stop(signal.SIGKILL)
        if self.etcd is not None and self.etcd.poll() is None:
            self.etcd.kill()
            self.etcd.wait(timeout=10)


def start_real_apiserver(folder: Path) -> RealApiServerProcess:
    """Start the kube-apiserver and etcd of KUBEBUILDER_ASSETS, with the identities of a local server."""
    plane = RealControlPlane(
        binaries=control_plane.assets(),
        data=folder / "real",
        address="127.0.0.1",
        port=_free_port(),
        etcd_address="127.0.0.1",
        grace_seconds=8.0,
        etcd_port=_free_port(),
        etcd_peer_port=_free_port(),
    )
    plane.prepare()
    log_path = plane.data / "log"
    with log_path.open("ab") as log:
        commands = plane.commands()
        etcd = subprocess.Popen(commands["etcd"], stdout=log, stderr=log)
        process = subprocess.Popen(commands["apiserver"], stdout=log, stderr=log)
    server = RealApiServerProcess(plane.data, process, plane.port, etcd=etcd)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if server.ready() and all(
            server.request("GET", f"/api/v1/namespaces/{name}").status == 200 for name in SYSTEM_NAMESPACES
        ):
            for name in SYSTEM_NAMESPACES:
                server.fill(name)
            return server
        time.sleep(0.3)
    server.stop(signal.SIGKILL)
    raise RuntimeError(f"the kube-apiserver did not start: {log_path.read_text()[-4000:]}")


def missing_real_apiserver() -> str:
    """Why no real kube-apiserver can be started here, "" when one can."""
    return control_plane.missing_binaries(control_plane.assets())


CONTROL_PLANES = ("local",) if missing_real_apiserver() else ("local", "real")
"""What the integration tests run against; a real control plane where there is one."""

CONTRACT_COUNTS = {"local": 0, "real": 0}


INTEGRATION_COUNTS = {"local": 0, "real": 0}


def count(item: pytest.Item) -> None:
    """Count a test by the control plane that it ran against."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    for fixture in ("apiserver", "cluster"):
        if parameters.get(fixture) in INTEGRATION_COUNTS:
            INTEGRATION_COUNTS[parameters[fixture]] += 1


def control_plane_summary() -> Iterator[str]:
    """How many recorded exchanges and integration tests ran against which API server."""
    reason = missing_real_apiserver()
    for what, counts in (("recorded exchanges", CONTRACT_COUNTS), ("integration tests", INTEGRATION_COUNTS)):
        if any(counts.values()):
            note = f" ({reason})" if reason and not counts["real"] else ""
            yield f"{what}: {counts['local']} against the local API server, {counts['real']} against a real one{note}"


@pytest.fixture(scope="module", params=CONTROL_PLANES)
def apiserver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServerProcess]:
    """A fresh API server for the tests of one module."""
    folder = tmp_path_factory.mktemp("apiserver")
    server = start_apiserver(folder) if request.param == "local" else start_real_apiserver(folder)
    yield server
    server.stop()
