"""Fixtures with a local API server: a process of its own on an ephemeral port, stopped at the end."""

from __future__ import annotations

import json
import os
import signal
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

START_TIMEOUT_SECONDS = 20.0
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
        request = urllib.request.Request(self.url + path, data=data, method=method)
        request.add_header("Accept", accept)
        if data is not None:
            request.add_header("Content-Type", content_type)
        if token := self.token if token is None else token:
            request.add_header("Authorization", f"Bearer {token}")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        if self._context is None:
            self._context = ssl.create_default_context(cafile=str(self.data_dir / "pki" / "ca.crt"))
        try:
            with urllib.request.urlopen(request, timeout=timeout_seconds, context=self._context) as response:
                return Answer(response.status, response.read(), dict(response.headers))
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read(), dict(error.headers))

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


@pytest.fixture(scope="module")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServerProcess]:
    """A fresh local API server for the tests of one module."""
    server = start_apiserver(tmp_path_factory.mktemp("apiserver"))
    yield server
    server.stop()
