"""A rank's output: to a file that rotates, to the pod's own output with a prefix, and its tail to the store."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from io import RawIOBase
from pathlib import Path

TAIL_BYTES = 4 << 20
_READ_BYTES = 1 << 16


class RankLog:
    """The log of one rank in one attempt: at most two files of TAIL_BYTES each."""

    def __init__(self, path: Path, rank: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.rank = rank
        self._older = path.with_suffix(".1.log")
        # Unbuffered: what a full disk refused is not tried again when the file is closed.
        self._file: RawIOBase = path.open("wb", buffering=0)
        self._size = 0
        self._total = 0
        self._uploaded = 0
        self._line = b""

    def write(self, data: bytes) -> None:
        """Append output and echo whole lines. A disk that takes no more loses lines and stops nothing."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: no new file could be opened
            self._append(data)
        *lines, self._line = (self._line + data).split(b"\n")
        self._echo(lines)

    def _append(self, data: bytes) -> None:
        if self._size + len(data) > TAIL_BYTES:
            self._file.close()
            self.path.replace(self._older)
            self._file = self.path.open("wb", buffering=0)
            self._size = 0
        self._file.write(data)
        self._size += len(data)
        self._total += len(data)

    def close(self) -> None:
        """Finish; the file stays."""
        if self._line:
            self._echo([self._line])
            self._line = b""
        with contextlib.suppress(OSError):
            self._file.close()

    def _echo(self, lines: list[bytes]) -> None:
        if lines:
            prefix = f"[rank {self.rank}] ".encode()
            sys.stdout.buffer.write(b"".join(prefix + line + b"\n" for line in lines))
            sys.stdout.buffer.flush()

    def last_words(self) -> str:
        """The last 4 KiB; empty where the disk does not give them."""
        try:
            return self.path.read_bytes()[-4096:].decode(errors="replace")
        except OSError:
            return ""

    def unstored_tail(self) -> tuple[bytes, int] | None:
        """The last TAIL_BYTES and a mark for stored(), or None when nothing came since what was stored."""
        if self._total == self._uploaded:
            return None
        older = self._older.read_bytes() if self._older.exists() else b""
        return (older + self.path.read_bytes())[-TAIL_BYTES:], self._total

    def stored(self, mark: int) -> None:
        """The tail with this mark is in the store; until then it is offered again."""
        self._uploaded = mark


async def pump(reader: asyncio.StreamReader, log: RankLog) -> None:
    """Copy a rank's output to its log until the rank closes it."""
    while data := await reader.read(_READ_BYTES):
        log.write(data)
    log.close()
