"""Processes of a cluster, known by id and start time so that a reused id is never taken for one of ours."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from trireme_local.errors import ClusterError

# Daemons go before pods, as a real machine reserves resources for the kubelet and a real cluster has machines of its
# own for the control plane: a busy pod must not look like a dead node. Needs root; without it all are equal.
DAEMON_NICENESS = -5


@dataclass(frozen=True)
class ProcessRecord:
    """A process as the cluster's state file keeps it."""

    pid: int
    created_at: float

    @classmethod
    def of(cls, pid: int) -> ProcessRecord:
        """The running process with that id."""
        return cls(pid, psutil.Process(pid).create_time())

    def find(self) -> psutil.Process | None:
        """The process while it lives (a zombie does not)."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created_at) < 0.02
            if same and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


def start(command: Sequence[str], log_path: Path, environment: Mapping[str, str]) -> ProcessRecord:
    """Start a daemon: leader of a new session, output appended to `log_path`."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(environment),
            start_new_session=True,
        )
    with contextlib.suppress(psutil.AccessDenied):
        psutil.Process(process.pid).nice(DAEMON_NICENESS)
    return ProcessRecord.of(process.pid)


def check_alive(records: Mapping[str, ProcessRecord], logs: Path) -> None:
    """Raise `ClusterError` with the end of its log when a process has died."""
    for name, record in records.items():
        if record.find() is None:
            log = logs / f"{name}.log"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise ClusterError(f"{name} ended unexpectedly; {log} ends with:\n{tail}")


def terminate(records: Sequence[ProcessRecord], patience_seconds: float = 5.0) -> None:
    """SIGTERM, then SIGKILL for those that are still there."""
    alive = [process for record in records if (process := record.find()) is not None]
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
            process.resume()
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline and any(record.find() for record in records):
        time.sleep(0.05)
    for record in records:
        if process := record.find():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
