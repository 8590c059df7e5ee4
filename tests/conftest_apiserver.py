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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from trireme_local.apiserver import identities, kubeconfig
from trireme_local.apiserver.pki import Pki

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
    while time.monotonic() < deadline and process.poll() is None:
        if (data_dir / "port").exists():
            server.port = int((data_dir / "port").read_text())
            if server.ready():
                return server
        time.sleep(POLL_SECONDS)
    server.stop(signal.SIGKILL)
    raise RuntimeError(f"the API server did not start: {(data_dir / 'log').read_text()}")


def _assets() -> Path:
    return Path(os.environ.get("KUBEBUILDER_ASSETS", "/usr/local/kubebuilder/bin"))


def missing_real_apiserver() -> str:
    """Why no real kube-apiserver can be started here, "" when one can."""
    missing = [name for name in ("kube-apiserver", "etcd") if not os.access(_assets() / name, os.X_OK)]
    return f"no {' and no '.join(missing)} in {_assets()}" if missing else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RealApiServerProcess(ApiServerProcess):
    """A real kube-apiserver with its own etcd."""

    etcd: subprocess.Popen[bytes] | None = None

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        super().stop(how)
        if self.etcd is not None and self.etcd.poll() is None:
            self.etcd.kill()
            self.etcd.wait(timeout=10)


def start_real_apiserver(folder: Path) -> RealApiServerProcess:
    """Start the kube-apiserver and etcd of KUBEBUILDER_ASSETS, with the identities of a local server."""
    data, port, etcd_port, peer_port = folder / "real", _free_port(), _free_port(), _free_port()
    pki = Pki(data / "pki")
    token = identities.issue(data, identities.ADMIN_USER, [identities.ADMIN_GROUP])
    log = (data / "log").open("ab")
    client_url, peer_url = f"http://127.0.0.1:{etcd_port}", f"http://127.0.0.1:{peer_port}"
    etcd_options = {
        "data-dir": data / "etcd",
        "listen-client-urls": client_url,
        "advertise-client-urls": client_url,
        "listen-peer-urls": peer_url,
        "initial-advertise-peer-urls": peer_url,
        "initial-cluster": f"default={peer_url}",
        "unsafe-no-fsync": "true",
    }
    options = {
        "etcd-servers": client_url,
        "secure-port": port,
        "bind-address": "127.0.0.1",
        "advertise-address": "127.0.0.1",
        "service-cluster-ip-range": "10.96.0.0/16",
        "tls-cert-file": pki.folder / "apiserver.crt",
        "tls-private-key-file": pki.folder / "apiserver.key",
        "token-auth-file": identities.tokens_path(data),
        "authorization-mode": "Node,RBAC",
        "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
        "service-account-signing-key-file": pki.folder / "sa.key",
        "service-account-key-file": pki.folder / "sa.key",
    }

    def run(name: str, flags: dict[str, Any]) -> subprocess.Popen[bytes]:
        command = [str(_assets() / name), *(f"--{flag}={value}" for flag, value in flags.items())]
        return subprocess.Popen(command, stdout=log, stderr=log)

    etcd, process = run("etcd", etcd_options), run("kube-apiserver", options)
    server = RealApiServerProcess(data, process, port, etcd=etcd)
    kubeconfig.write(server.kubeconfig, server=server.url, token=token, ca_path=pki.ca_path)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if server.ready() and server.request("GET", "/api/v1/namespaces/default").status == 200:
            return server
        time.sleep(0.3)
    server.stop(signal.SIGKILL)
    raise RuntimeError(f"the kube-apiserver did not start: {(data / 'log').read_text()[-4000:]}")


CONTRACT_COUNTS = {"local": 0, "real": 0}


def contract_summary() -> str:
    """One line: how many recorded exchanges were replayed against which API server; "" when none was."""
    if not any(CONTRACT_COUNTS.values()):
        return ""
    reason = missing_real_apiserver()
    note = f" ({reason})" if reason and not CONTRACT_COUNTS["real"] else ""
    return (
        f"contract: {CONTRACT_COUNTS['local']} recorded exchanges replayed against the local API server, "
        f"{CONTRACT_COUNTS['real']} against a real kube-apiserver{note}"
    )


@pytest.fixture(scope="module")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServerProcess]:
    """A fresh local API server for the tests of one module."""
    server = start_apiserver(tmp_path_factory.mktemp("apiserver"))
    yield server
    server.stop()
