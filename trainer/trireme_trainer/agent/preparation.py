"""PREPARE on slot 0: runs the program's preparation in a process of its own and repeats it while waiting may help."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path

import psutil
from pydantic import Field, ValidationError

from trireme.protocol import InputsProblem, ProposedResume, Target
from trireme.protocol.base import WireModel
from trireme_trainer.agent.launcher import child_environment
from trireme_trainer.agent.memory import count_oom_kills

log = logging.getLogger(__name__)
RETRY_SECONDS = 10.0
LOOK_SECONDS = 1.0
"""Between two looks at whether the process does anything."""


class PreparationResult(WireModel):
    """What a program's preparation writes: exactly one of the two."""

    proposal: ProposedResume | None = None
    problem: InputsProblem | None = Field(default=None)


class Preparation:
    """The preparation of one attempt."""

    def __init__(self, module: str, target: Target, job_file: Path, scratch: Path) -> None:
        self.attempt = target.attempt
        self.proposal: ProposedResume | None = None
        self.problem: InputsProblem | None = None
        self._module = module
        self._target = target
        self._job_file = job_file
        self._directory = scratch / "preparation"
        self._process: asyncio.subprocess.Process | None = None
        self._task = asyncio.create_task(self._repeat())

    @property
    def settled(self) -> bool:
        """Whether there is something to report."""
        return self.proposal is not None or self.problem is not None

    async def stop(self) -> None:
        """End it; nothing of it goes on."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    async def _repeat(self) -> None:
        while True:
            try:
                result = await self._once()
            except Exception as error:  # without an answer the job would wait for ever and say nothing of why
                log.exception("preparation could not be run")
                message = f"preparation could not be run: {type(error).__name__}: {error}"
                result = _failed(message)
            self.proposal, self.problem = result.proposal, result.problem
            if self.problem is None or not self.problem.retryable:
                return
            log.warning("inputs are not usable yet: %s: %s", self.problem.reason, self.problem.message)
            await asyncio.sleep(RETRY_SECONDS)

    async def _once(self) -> PreparationResult:
        self._directory.mkdir(parents=True, exist_ok=True)
        target_file, result_file = self._directory / "target.json", self._directory / "result.json"
        target_file.write_text(self._target.to_json())
        result_file.unlink(missing_ok=True)
        oom_kills = count_oom_kills()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self._module,
            "--job-file",
            str(self._job_file),
            "--target-file",
            str(target_file),
            "--scratch",
            str(self._directory.parent),
            "--result-file",
            str(result_file),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=child_environment(),
            process_group=0,
        )
        ended = asyncio.create_task(_end_of(self._process))
        patience = self._target.settings.start_timeout_seconds
        if not await _works_until(ended, self._process.pid, patience):
            ended.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # not waited for: a stuck mount may hold it
            message = f"preparation used no processor time for {patience:.0f} s: a volume or a file does not answer"
            return PreparationResult(
                problem=InputsProblem(reason="PreparationStalled", message=message, retryable=True)
            )
        code, tail = ended.result()
        if code == -signal.SIGKILL and (killed := count_oom_kills() - oom_kills) > 0:
            # It would need as much the next time.
            message = f"preparation was killed for memory ({killed} OOM kills in this container): give the pod more"
            return PreparationResult(
                problem=InputsProblem(reason="PreparationOutOfMemory", message=message, retryable=False)
            )
        try:
            if code == 0:
                return PreparationResult.model_validate_json(result_file.read_bytes())
        except (OSError, ValidationError) as error:
            tail = str(error).encode()
        message = f"preparation ended with {code}: {tail.decode(errors='replace').strip()}"
        return _failed(message)


async def _end_of(process: asyncio.subprocess.Process) -> tuple[int, bytes]:
    """Its exit code and the last lines that it wrote, once it has ended; all that it writes goes to the pod's log."""
    assert process.stderr is not None
    tail = b""
    while data := await process.stderr.read(1 << 16):
        sys.stderr.buffer.write(data)
        sys.stderr.buffer.flush()
        tail = (tail + data)[-2048:]
    return await process.wait(), tail


async def _works_until(ended: asyncio.Task[tuple[int, bytes]], pid: int, patience_seconds: float) -> bool:
    """Wait for the end; False when the process stood still before it.

    Whatever it does uses processor time, and requests to the store have time-outs of their own. A read from a mount
    that is gone has none.
    """
    used, moved_at = 0.0, time.monotonic()
    while not (await asyncio.wait([ended], timeout=LOOK_SECONDS))[0]:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess:
            continue
        if times.user + times.system > used:
            used, moved_at = times.user + times.system, time.monotonic()
        elif time.monotonic() - moved_at > patience_seconds:
            return False
    return True


def _failed(message: str) -> PreparationResult:
    return PreparationResult(problem=InputsProblem(reason="PreparationFailed", message=message, retryable=True))
