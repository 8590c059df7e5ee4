"""The rank processes of one attempt on one node."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from trireme.protocol import RankReport, Section
from trireme.protocol.base import WireModel
from trireme_trainer.agent.classify import RankEnd, is_crash
from trireme_trainer.agent.launcher import Child, Launcher, open_pipe
from trireme_trainer.agent.logs import RankLog, pump
from trireme_trainer.agent.messages import FROM_RANK, Beat, FailedEvent, FromRank, ProgressEvent, SectionEvent

log = logging.getLogger(__name__)
LINE_LIMIT_BYTES = 16 << 20
TERM_SECONDS = 2.0


@dataclass
class RankProcess:
    """One rank."""

    rank: int
    process: Child
    log: RankLog
    error_file: Path
    writer: asyncio.StreamWriter
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    section: Section = Section.START
    step: int = 0
    entered_at: float = field(default_factory=time.monotonic)
    beat_at: float = field(default_factory=time.monotonic)
    loop_seconds: float = 0.0
    failed: FailedEvent | None = None
    end: RankEnd | None = None

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.returncode is None

    def silent_seconds(self, now: float) -> float:
        """Since the rank's last heartbeat."""
        return now - self.beat_at

    def report(self, now: float) -> RankReport:
        """What the operator is told of it."""
        return RankReport(
            rank=self.rank,
            pid=self.process.pid,
            alive=self.alive,
            section=self.section,
            step=self.step,
            seconds_in_section=round(now - self.entered_at, 3),
            seconds_since_heartbeat=round(self.silent_seconds(now), 3),
        )

    def signal(self, number: int) -> None:
        """Signal the rank's whole process group, once it is known to be there."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def send(self, message: WireModel) -> None:
        """Give the rank an order; a rank that is gone takes none."""
        if self.alive and not self.writer.is_closing():
            self.writer.write(message.to_json().encode() + b"\n")

    def is_stopped(self) -> bool:
        """Whether the kernel shows the process as stopped by a signal (state T)."""
        try:
            return Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "Tt"
        except (OSError, IndexError):
            return False

    def read_error(self) -> FailedEvent | None:
        """The exception record that the rank left, over the channel or as a file."""
        if self.failed is None and self.error_file.exists():
            with contextlib.suppress(ValidationError):
                self.failed = FailedEvent.model_validate_json(self.error_file.read_bytes())
        return self.failed


@dataclass(frozen=True)
class RankStart:
    """What every rank of a node is started with."""

    attempt: int
    first_rank: int
    count: int
    world_size: int
    directory: Path


class RankSet:
    """Starts the ranks of an attempt, hears them, and ends them."""

    def __init__(self, start: RankStart, launcher: Launcher, on_event: Callable[[RankProcess, FromRank], None]) -> None:
        self.attempt = start.attempt
        self.ranks: list[RankProcess] = []
        self.changed = asyncio.Event()
        self._stopped = False
        self._start = start
        self._launcher = launcher
        self._on_event = on_event

    async def start(self, environment: Mapping[str, str]) -> None:
        """Start all ranks with these variables beside their own."""
        for local_rank in range(self._start.count):
            self.ranks.append(await self._spawn(local_rank, environment))

    async def _spawn(self, local_rank: int, shared: Mapping[str, str]) -> RankProcess:
        start, rank = self._start, self._start.first_rank + local_rank
        ours, theirs = socket.socketpair()
        error_file = start.directory / f"rank-{rank}.error.json"
        error_file.unlink(missing_ok=True)
        environment = {
            **self._launcher.environment(),
            **shared,
            "RANK": str(rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(start.world_size),
            "LOCAL_WORLD_SIZE": str(start.count),
            "TRIREME_ATTEMPT": str(start.attempt),
            "TRIREME_ERROR_FILE": str(error_file),
            "PYTHONUNBUFFERED": "1",
        }
        output, their_output = os.pipe()
        try:
            process = await self._launcher.start(environment, theirs, their_output)
        finally:
            theirs.close()
            os.close(their_output)
        log.info("rank %d of attempt %d runs as process %d", rank, start.attempt, process.pid)
        try:
            return await self._watch(rank, process, ours, output, error_file)
        except BaseException:
            # Whoever gives up on a rank here leaves none behind.
            os.killpg(process.pid, signal.SIGKILL)
            raise

    async def _watch(
        self, rank: int, process: Child, channel: socket.socket, output: int, error_file: Path
    ) -> RankProcess:
        reader, writer = await asyncio.open_connection(sock=channel, limit=LINE_LIMIT_BYTES)
        rank_log = RankLog(self._start.directory / f"rank-{rank}.log", rank)
        entry = RankProcess(rank, process, rank_log, error_file, writer)
        copying = asyncio.create_task(pump(await open_pipe(output), rank_log))
        events = asyncio.create_task(self._hear(entry, reader))
        entry.tasks = [copying, events, asyncio.create_task(self._await_end(entry, events, copying))]
        return entry

    async def _hear(self, entry: RankProcess, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):  # a rank that is killed may leave its end unread
            await self._take_events(entry, reader)

    async def _take_events(self, entry: RankProcess, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            try:
                event = FROM_RANK.validate_json(line)
            except ValidationError:
                log.error("rank %d sent no event: %s", entry.rank, json.dumps(line[:200].decode(errors="replace")))
                continue
            now = time.monotonic()
            entry.beat_at = now
            match event:
                case Beat(loop_seconds=seconds):
                    entry.loop_seconds = seconds
                    continue
                case SectionEvent(section=section, step=step):
                    entry.section, entry.step, entry.entered_at = section, step, now
                case ProgressEvent(progress=progress):
                    entry.step, entry.entered_at = progress.step, now
                case FailedEvent():
                    entry.failed = event
            self._on_event(entry, event)

    async def _await_end(self, entry: RankProcess, events: asyncio.Task[None], copying: asyncio.Task[None]) -> None:
        code = await entry.process.wait()
        at = time.monotonic()
        # What the rank sent before it ended is still in the socket.
        await asyncio.wait([events], timeout=1.0)
        last_words = ""
        if is_crash(code):
            await asyncio.wait([copying], timeout=0.5)
            last_words = entry.log.last_words()
        entry.end = RankEnd(entry.rank, entry.step, code, at, entry.read_error(), last_words)
        log.info("rank %d ended with %d", entry.rank, code)
        self.changed.set()

    @property
    def alive(self) -> int:
        """Ranks that still run."""
        return sum(r.alive for r in self.ranks)

    @property
    def ended(self) -> bool:
        """Whether every rank has ended and said its last."""
        return all(r.end is not None for r in self.ranks)

    def ends(self) -> list[RankEnd]:
        """How the ranks that ended did."""
        return [r.end for r in self.ranks if r.end is not None]

    def send(self, message: WireModel) -> None:
        """Give every rank an order."""
        for rank in self.ranks:
            rank.send(message)

    async def stop(self, *, term_seconds: float = TERM_SECONDS) -> None:
        """End every rank's process group: SIGTERM, then SIGKILL; returns when none is alive. Does its work once."""
        if self._stopped:
            return
        for rank in self.ranks:
            if rank.alive:
                rank.signal(signal.SIGTERM)
                rank.signal(signal.SIGCONT)  # a stopped process takes no signal but SIGKILL
        if self.alive and term_seconds > 0:
            await asyncio.wait([asyncio.create_task(r.process.wait()) for r in self.ranks], timeout=term_seconds)
        for rank in self.ranks:
            # Also after the rank itself ended: children it left are in its group.
            rank.signal(signal.SIGKILL)
        for rank in self.ranks:
            await rank.process.wait()
        if self.ranks:
            await asyncio.wait([t for r in self.ranks for t in r.tasks], timeout=2.0)
        for rank in self.ranks:
            rank.writer.close()
        self._stopped = True
