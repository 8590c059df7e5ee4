"""A node's processes, found from outside: by its session and by the marker in their environment.

Imports next to nothing: a command that kills a node must act at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterable
from pathlib import Path

import psutil

MARKER = "TRIREME_LOCAL_CONTAINER"
SHARED_MEMORY = Path("/dev/shm")


def node_marker(directory: Path, name: str) -> str:
    """What the processes of this node carry in their environment; unique on this computer."""
    return f"{hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:12]}/{name}"


def scratch_directory(directory: Path, name: str) -> Path:
    """Short path for temporary files of pods (Unix socket paths are limited to 107 bytes)."""
    digest = node_marker(directory, name).partition("/")[0]
    return Path(tempfile.gettempdir()) / f"trl-{digest}"


def memory_directory(directory: Path, name: str) -> Path | None:
    """Where a node keeps volumes of medium `Memory`; None where this computer has no file system in memory."""
    usable = SHARED_MEMORY.is_mount() and os.access(SHARED_MEMORY, os.W_OK)
    return SHARED_MEMORY / scratch_directory(directory, name).name if usable else None


def remove_temporary(directory: Path, name: str) -> None:
    """Remove what a node that was killed has left outside its directory."""
    for path in (scratch_directory(directory, name), memory_directory(directory, name)):
        if path is not None:
            shutil.rmtree(path, ignore_errors=True)


def marker_of(pid: int) -> str | None:
    """The container marker in a process's environment at its start."""
    prefix = f"{MARKER}=".encode()
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    return next((entry[len(prefix) :].decode() for entry in environment.split(b"\0") if entry.startswith(prefix)), None)


def marked_processes(prefix: str) -> list[psutil.Process]:
    """All live processes whose container marker starts with `prefix`."""
    found = []
    for process in psutil.process_iter():
        if (marker := marker_of(process.pid)) is not None and marker.startswith(prefix):
            found.append(process)
    return found


def session_processes(session_id: int) -> list[psutil.Process]:
    """All processes of a session, zombies left out."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == session_id and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def send_all(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Signal each process that still exists."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
