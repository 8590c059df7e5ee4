"""Starting, finding and killing the processes of containers.

Every container is a process group of the node's own session (never a new session), so that killing the
session kills the machine. What a container leaves behind is found by descent and by a marker in its environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from trireme_local.node.logs import LogWriter, last_line
from trireme_local.node.namespaces import MountNamespaces, exec_failure
from trireme_local.node.rootfs import ContainerRoot
from trireme_local.sessions import MARKER, marker_of, send_all

_PR_SET_CHILD_SUBREAPER = 36
KILL_ROUNDS = 50
KILL_PAUSE_SECONDS = 0.05


def become_subreaper() -> None:
    """Make orphaned grandchildren children of this process, so that none escapes. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def reap_orphans(known: Iterable[int]) -> None:
    """Collect adopted children that have exited; `known` are those that somebody else waits for."""
    mine = set(known)
    for child in psutil.Process().children():
        if child.pid in mine:
            continue
        with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
            if child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)


@dataclass
class ProcessTable:
    """One look at the descendants of the node process, grouped by container."""

    by_marker: dict[str, list[psutil.Process]]

    @classmethod
    def scan(cls) -> ProcessTable:
        """Read the table now."""
        table: dict[str, list[psutil.Process]] = {}
        for process in psutil.Process().children(recursive=True):
            if (marker := marker_of(process.pid)) is not None:
                table.setdefault(marker, []).append(process)
        return cls(table)

    def memory_bytes(self, marker: str) -> int:
        """Private resident memory of a container's processes: resident minus shared pages, summed.

        Shared pages are libraries mapped by every rank; counting them once per process would kill
        containers that a cgroup would let live.
        """
        total = 0
        for process in self.by_marker.get(marker, []):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                memory = process.memory_info()
                total += max(0, memory.rss - memory.shared)
        return total


class ContainerProcess:
    """One run of a container."""

    def __init__(self, process: asyncio.subprocess.Process, marker: str, log_writer: LogWriter) -> None:
        self.process = process
        self.marker = marker
        self.oom_killed = False
        self._log_writer = log_writer

    @classmethod
    async def start(
        cls,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        directory: Path,
        log_path: Path,
        marker: str,
        namespaces: MountNamespaces | None = None,
        root: ContainerRoot | None = None,
    ) -> ContainerProcess:
        """Run `arguments` in a process group of their own, with the file system `root` where one is given.

        Raises OSError when the program cannot be started.
        """
        if namespaces is None or root is None:
            return await cls._spawn(arguments, env, directory, log_path, marker)
        async with namespaces.make(root, marker) as holder:
            started = await cls._spawn(
                [*namespaces.entering(holder, root), *arguments], env, directory, log_path, marker
            )
            if await namespaces.entered(started.process):
                return started
        await started._written()
        if failure := exec_failure(started.process.returncode, last_line(log_path)):
            raise OSError(failure)
        return started

    @classmethod
    async def _spawn(
        cls, arguments: Sequence[str], env: Mapping[str, str], directory: Path, log_path: Path, marker: str
    ) -> ContainerProcess:
        loop = asyncio.get_running_loop()
        read_end, write_end = os.pipe()
        writer = LogWriter(log_path)
        await loop.connect_read_pipe(lambda: writer, os.fdopen(read_end, "rb", buffering=0))
        try:
            process = await asyncio.create_subprocess_exec(
                *arguments,
                env={**env, MARKER: marker},
                cwd=directory,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                process_group=0,
            )
        finally:
            os.close(write_end)
        return cls(process, marker, writer)

    @property
    def pid(self) -> int:
        """Process id of the container's first process."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """True until the first process has exited."""
        return self.process.returncode is None

    async def wait(self) -> int:
        """Exit code as a shell reports it (128 + signal), after every process of the container is gone."""
        code = await self.process.wait()
        await self.kill_remains()
        await self._written()
        return code if code >= 0 else 128 - code

    async def _written(self) -> None:
        """Wait until the log holds all output."""
        # A process that the kill could not reach may hold the pipe: the log is not worth waiting for ever.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                await asyncio.shield(self._log_writer.closed)

    def signal(self, number: signal.Signals) -> None:
        """Signal the first process only, as a container runtime does."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def kill_remains(self) -> None:
        """SIGKILL every process of the container until none is left."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for _ in range(KILL_ROUNDS):
            left = ProcessTable.scan().by_marker.get(self.marker, [])
            alive = [process for process in left if process.pid != self.pid or self.running]
            if not alive:
                return
            send_all(alive, signal.SIGKILL)
            await asyncio.sleep(KILL_PAUSE_SECONDS)


async def run_probe_command(
    arguments: Sequence[str], *, env: Mapping[str, str], directory: Path, marker: str, timeout_seconds: float
) -> tuple[int, str]:
    """Run a command beside a container; (exit code, output). Raises TimeoutError after killing it, OSError."""
    process = await asyncio.create_subprocess_exec(
        *arguments,
        env={**env, MARKER: marker},
        cwd=directory,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        process_group=0,
    )
    try:
        async with asyncio.timeout(timeout_seconds):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode or 0, output.decode(errors="replace")[:4096]
