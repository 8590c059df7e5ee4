"""Container logs on disk, a line as the container runtime interface writes it: TIME STREAM TAG TEXT."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from trireme_local.node.status import ContainerRecord

# A line longer than this is written in parts tagged P (partial), the last one F (full).
MAX_LINE_BYTES = 16 * 1024
# One run's log is cut here and goes on in a fresh file, one old file kept (kubelet: containerLogMaxSize).
MAX_LOG_BYTES = 64 * 1024 * 1024
READ_BYTES = 256 * 1024
FOLLOW_POLL_SECONDS = 0.2


class LogWriter(asyncio.Protocol):
    """Reads a container's output pipe and writes the log file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._size_bytes = self._file.tell()
        self._rest = b""
        self.closed = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """Write the complete lines of what arrived."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        while len(self._rest) > MAX_LINE_BYTES:
            self._write(self._rest[:MAX_LINE_BYTES], b"P")
            self._rest = self._rest[MAX_LINE_BYTES:]
        for line in lines:
            while len(line) > MAX_LINE_BYTES:
                self._write(line[:MAX_LINE_BYTES], b"P")
                line = line[MAX_LINE_BYTES:]
            self._write(line, b"F")
        self._file.flush()

    def connection_lost(self, error: Exception | None) -> None:
        """The pipe is closed: write what is left."""
        if self._rest:
            self._write(self._rest, b"F")
        self._file.close()
        if not self.closed.done():
            self.closed.set_result(None)

    def _write(self, text: bytes, tag: bytes) -> None:
        time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z").encode()
        line = b"%s stdout %s %s\n" % (time, tag, text)
        if self._size_bytes + len(line) > MAX_LOG_BYTES:
            self._file.close()
            self.path.replace(self.path.with_suffix(".log.1"))
            self._file = self.path.open("ab")
            self._size_bytes = 0
        self._file.write(line)
        self._size_bytes += len(line)


def log_directory(pod_directory: Path, container: str) -> Path:
    """Where a container of the pod in `pod_directory` has its logs and its root directory."""
    return pod_directory / "containers" / container


@dataclass(frozen=True)
class LogSource:
    """A container's logs: RESTARTS.log for each run that is kept."""

    directory: Path
    record: ContainerRecord
    is_running: Callable[[], bool]

    def path(self, restart: int) -> Path:
        """Log of the run after that many restarts."""
        return self.directory / f"{restart}.log"


@dataclass(frozen=True)
class LogOptions:
    """Which part of a log is wanted; the fields are PodLogOptions'."""

    follow: bool = False
    timestamps: bool = False
    tail_lines: int | None = None
    since: datetime | None = None
    limit_bytes: int | None = None

    @classmethod
    def from_query(cls, query: dict[str, str]) -> LogOptions:
        """Options from the query of a log request. Raises ValueError."""
        since = None
        if seconds := query.get("sinceSeconds"):
            since = datetime.now(UTC) - timedelta(seconds=int(seconds))
        elif time := query.get("sinceTime"):
            since = datetime.fromisoformat(time.replace("Z", "+00:00"))
        return cls(
            follow=query.get("follow", "") in ("true", "1"),
            timestamps=query.get("timestamps", "") in ("true", "1"),
            tail_lines=int(query["tailLines"]) if query.get("tailLines") else None,
            since=since,
            limit_bytes=int(query["limitBytes"]) if query.get("limitBytes") else None,
        )


def last_line(path: Path) -> str:
    """Text of the last line, "" where there is none."""
    lines = path.read_bytes().splitlines()
    return lines[-1].split(b" ", 3)[-1].decode(errors="replace") if lines else ""


def _render(line: bytes, options: LogOptions) -> bytes:
    """The part of a stored line that the reader wants, b"" when it is too old."""
    time, _, rest = line.partition(b" ")
    _, _, rest = rest.partition(b" ")
    tag, _, text = rest.partition(b" ")
    if options.since is not None and datetime.fromisoformat(time[:26].decode() + "+00:00") < options.since:
        return b""
    if tag == b"P":
        text = text.removesuffix(b"\n")
    return time + b" " + text if options.timestamps else text


def _tail_offset(path: Path, lines: int) -> int:
    """Offset in the file where its last `lines` lines begin."""
    with path.open("rb") as file:
        position = file.seek(0, 2)
        missing = lines + 1
        while position > 0 and missing > 0:
            step = min(READ_BYTES, position)
            position -= step
            file.seek(position)
            block = file.read(step)
            found = block.count(b"\n")
            if found >= missing:
                offset = len(block)
                for _ in range(missing):
                    offset = block.rfind(b"\n", 0, offset)
                return position + offset + 1
            missing -= found
        return 0


def _is_rotated(path: Path, file: BinaryIO) -> bool:
    """The writer has gone on in a fresh file of that name."""
    return path.stat().st_ino != os.fstat(file.fileno()).st_ino


async def read_log(path: Path, options: LogOptions, running: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Chunks of the log; with follow, until `running()` is false and everything has been read."""
    left = options.limit_bytes if options.limit_bytes is not None else -1
    offset = _tail_offset(path, options.tail_lines) if options.tail_lines is not None else 0
    file: BinaryIO = path.open("rb")
    try:
        file.seek(offset)
        while True:
            last_round = not (options.follow and running())
            chunk = bytearray()
            while line := file.readline():
                if not line.endswith(b"\n"):
                    file.seek(-len(line), 1)
                    break
                chunk += _render(line, options)
                if len(chunk) > READ_BYTES:
                    break
            if left >= 0:
                chunk = chunk[:left]
                left -= len(chunk)
            if chunk:
                yield bytes(chunk)
            if left == 0 or (last_round and not chunk):
                return
            if not chunk:
                if _is_rotated(path, file):
                    file.close()
                    file = path.open("rb")
                await asyncio.sleep(FOLLOW_POLL_SECONDS)
    finally:
        file.close()
