"""Starts rank processes: forked from a process that has the imports done, or as plain processes where there is none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Protocol

from trireme_trainer.agent.channel import AGENT_PID_ENV, CHANNEL_ENV
from trireme_trainer.agent.programs import find_program

log = logging.getLogger(__name__)
FORK_SECONDS = 10.0
TOKEN_ENV = "TRIREME_AGENT_TOKEN"


def child_environment(threads: int = 1) -> dict[str, str]:
    """The agent's environment less its token, which is none of the training code's business.

    `threads`: of torch's operators on the host, where the pod's environment does not say.
    """
    environment = {k: v for k, v in os.environ.items() if k != TOKEN_ENV}
    environment[AGENT_PID_ENV] = str(os.getpid())
    # Read when the libraries load, so the zygote needs it too.
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    # OpenBLAS starts its threads when it loads, and the zygote must have none.
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    return environment


class Child(Protocol):
    """A started process, as asyncio's Process has it."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    async def wait(self) -> int: ...


class ForkedChild:
    """A rank forked by the zygote, which reports its end."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.Event()

    async def wait(self) -> int:
        """Its return code, negative for a signal."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def end(self, code: int) -> None:
        """The zygote reported its end."""
        self.returncode = code
        self._ended.set()


class Launcher:
    """Starts ranks of one program, each with so many threads for torch's operators on the host."""

    def __init__(self, program: str, threads: int) -> None:
        self._program = program
        self._threads = threads
        self._module = find_program(program).ranks
        self._zygote: asyncio.subprocess.Process | None = None
        self._requests: socket.socket | None = None
        self._ready = asyncio.Event()
        self._settled = asyncio.Event()
        self._children: dict[int, ForkedChild] = {}
        self._starting: dict[int, asyncio.Future[ForkedChild]] = {}
        self._next_id = 0
        self._reader: asyncio.Task[None] | None = None

    def environment(self) -> dict[str, str]:
        """What every rank's environment begins with."""
        return child_environment(self._threads)

    async def warm_up(self) -> None:
        """Start the zygote; returns at once, its imports go on."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        read_end, write_end = os.pipe()
        try:
            self._zygote = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "trireme_trainer.agent.zygote", "--program", self._program),
                *("--requests", str(theirs.fileno()), "--replies", str(write_end)),
                stdin=subprocess.DEVNULL,
                env=self.environment(),
                pass_fds=(theirs.fileno(), write_end),
                process_group=0,
            )
        finally:
            theirs.close()
            os.close(write_end)
        ours.setblocking(False)
        self._requests = ours
        self._reader = asyncio.create_task(self._hear(await open_pipe(read_end)))

    async def start(self, environment: Mapping[str, str], channel: socket.socket, output: int) -> Child:
        """Start one rank with a channel and a descriptor for its output; both stay the caller's to close."""
        if self._zygote is not None:
            # A plain start would do the same imports once more, for every rank.
            await self._settled.wait()
        if self._ready.is_set() and self._requests is not None:
            try:
                return await self._fork(environment, channel, output)
            except (OSError, TimeoutError) as error:
                log.warning("no rank could be forked, starting a plain process: %s", error)
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", self._module),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**environment, CHANNEL_ENV: str(channel.fileno())},
            pass_fds=(channel.fileno(),),
            process_group=0,
        )

    async def _fork(self, environment: Mapping[str, str], channel: socket.socket, output: int) -> ForkedChild:
        assert self._requests is not None
        self._next_id += 1
        future: asyncio.Future[ForkedChild] = asyncio.get_running_loop().create_future()
        self._starting[self._next_id] = future
        request = json.dumps({"id": self._next_id, "environment": dict(environment)}).encode()
        socket.send_fds(self._requests, [request], [channel.fileno(), output])
        async with asyncio.timeout(FORK_SECONDS):
            return await future

    async def _hear(self, replies: asyncio.StreamReader) -> None:
        while line := await replies.readline():
            match json.loads(line):
                case {"ready": True}:
                    self._ready.set()
                    self._settled.set()
                case {"unusable": reason}:
                    log.warning("ranks are started as plain processes: %s", reason)
                case {"started": number, "pid": pid}:
                    child = self._children[pid] = ForkedChild(pid)
                    future = self._starting.pop(number)
                    if not future.done():
                        future.set_result(child)
                    else:  # nobody waits for it any more
                        os.killpg(pid, signal.SIGKILL)
                case {"ended": pid, "code": code}:
                    self._children.pop(pid).end(code)
        # The zygote is gone, and its children with it.
        self._ready.clear()
        self._settled.set()
        for future in self._starting.values():
            if not future.done():
                future.set_exception(ConnectionError("the zygote ended"))
        for child in self._children.values():
            child.end(-signal.SIGKILL)
        self._children.clear()
        if self._zygote is not None:
            log.info("the zygote ended with %d", await self._zygote.wait())
            self._zygote = None

    async def close(self) -> None:
        """End the zygote."""
        if self._requests is not None:
            self._requests.close()
        if self._zygote is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._zygote.pid, signal.SIGKILL)
        if self._reader is not None:
            await self._reader


async def open_pipe(descriptor: int) -> asyncio.StreamReader:
    """A stream over the read end of a pipe, which it owns from now on."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
    )
    return reader
