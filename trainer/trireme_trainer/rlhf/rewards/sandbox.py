"""Scores completions in a process of its own, with limits of time and memory."""

from __future__ import annotations

import json
import logging
import math
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from trireme_trainer.rlhf.rewards.batch import Completions
from trireme_trainer.rlhf.rewards.errors import (
    RewardCrashed,
    RewardFailed,
    RewardMalformed,
    RewardOutOfMemory,
    RewardRaised,
    RewardTimedOut,
    RewardUnusable,
)

log = logging.getLogger(__name__)
START_SECONDS = 60.0
"""For the interpreter, its imports and the reward's own."""
LOOK_SECONDS = 0.5
KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "TZ")
Json = dict[str, Any]


@dataclass(frozen=True)
class Code:
    """What a process scores with: a rule of the spec, or a user's source."""

    kind: str
    memory_bytes: int
    source: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


class _Process:
    """One process of the worker."""

    def __init__(self, name: str, code: Code, alive: Callable[[], None]) -> None:
        """Raises RewardFailed."""
        self._name = name
        ours, theirs = socket.socketpair()
        with theirs:
            # In the rank's process group, so that it ends with the rank however the rank ends.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trireme_trainer.rlhf.rewards.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={k: v for k, v in os.environ.items() if k in KEPT_ENVIRONMENT}
                | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        self._socket, self._received = ours, b""
        ours.setblocking(False)
        first = {
            "kind": code.kind,
            "name": name.replace("-", "_"),
            "source": code.source,
            "parameters": dict(code.parameters),
            "memoryBytes": code.memory_bytes,
        }
        said = self.ask(first, START_SECONDS, alive)
        if "error" in said:
            self.kill()
            raise RewardUnusable(name, str(said["message"]))

    def ask(self, document: Json, seconds: float, alive: Callable[[], None]) -> Json:
        """The answer. Raises TimeoutError, and ConnectionError when the process ends."""
        deadline = time.monotonic() + seconds
        unsent = memoryview(json.dumps(document).encode() + b"\n")
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            wants_write = [self._socket] if unsent else []
            readable, writable, _ = select.select([self._socket], wants_write, [], min(left, LOOK_SECONDS))
            if writable:
                unsent = unsent[self._socket.send(unsent) :]
            if readable:
                data = self._socket.recv(1 << 20)
                if not data:
                    raise ConnectionError("it closed its channel")
                self._received += data
            alive()
        line, _, self._received = self._received.partition(b"\n")
        said: Json = json.loads(line)
        return said

    def end(self) -> str:
        """How the process ended, in words."""
        try:
            code = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            return "its process closed its channel"
        return f"its process was ended by signal {-code}" if code < 0 else f"its process ended with {code}"

    def kill(self) -> None:
        """End it, and what it has started."""
        try:
            children = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        self._process.kill()
        for child in children:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait()
        self._socket.close()


class Sandbox:
    """A scorer whose code runs in a process of its own; the process is started when it is first needed."""

    def __init__(self, name: str, code: Code, timeout_seconds: float, *, empty_score: float = 0.0) -> None:
        """`timeout_seconds`: of one call with a whole batch. Completions without text score `empty_score`."""
        self._name, self._code, self._seconds, self._empty = name, code, timeout_seconds, empty_score
        self._process: _Process | None = None

    def start(self, alive: Callable[[], None] = lambda: None) -> None:
        """Start the process, unless it runs. Raises RewardUnusable when the code does not load."""
        if self._process is not None:
            return
        try:
            self._process = _Process(self._name, self._code, alive)
        except (TimeoutError, ConnectionError) as error:
            raise RewardUnusable(self._name, f"its process did not start: {type(error).__name__} {error}") from error

    def score(self, batch: Completions, alive: Callable[[], None]) -> list[float]:
        """A number for each completion. Raises RewardFailed."""
        numbers = [n for n, text in enumerate(batch.texts) if text.strip()]
        scores: list[Any] = [self._empty] * len(batch)
        if not numbers:
            return scores
        asked = batch.take(numbers)
        try:
            found = self._call(asked, self._seconds, alive)
        except RewardFailed as error:
            raise self._located(error, asked, alive) from error
        if len(found) != len(numbers):
            return found  # refused by whoever counts them
        for number, score in zip(numbers, found, strict=True):
            scores[number] = score
        return scores

    def _call(self, batch: Completions, seconds: float, alive: Callable[[], None]) -> list[Any]:
        self.start(alive)
        assert self._process is not None
        document = {"prompts": list(batch.prompts), "completions": list(batch.texts), "fields": _columns(batch.fields)}
        try:
            said = self._process.ask(document, seconds, alive)
        except TimeoutError:
            self.close()
            raise RewardTimedOut(self._name, f"took longer than {self._seconds:g} s", batch.prompts[0]) from None
        except (ConnectionError, ValueError, OSError) as error:
            how = self._process.end()
            self.close()
            raise RewardCrashed(self._name, f"{how} ({error})", batch.prompts[0]) from None
        match said.get("error"):
            case None:
                return [_number(score) for score in said["scores"]]
            case "malformed":
                raise RewardMalformed(self._name, str(said["message"]), batch.prompts[0])
            case "memory":
                self.close()
                limit = f"{self._code.memory_bytes / 2**20:.0f} MiB"
                raise RewardOutOfMemory(self._name, f"needed more than {limit}", batch.prompts[0])
        raise RewardRaised(self._name, str(said["message"]), batch.prompts[0])

    def _located(self, error: RewardFailed, batch: Completions, alive: Callable[[], None]) -> RewardFailed:
        """The failure with the first completion that fails by itself, looked for within the time of one more call."""
        if isinstance(error, RewardUnusable | RewardMalformed) or len(batch) == 1:
            return error
        deadline = time.monotonic() + self._seconds
        for number in range(len(batch)):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                self._call(batch.take([number]), left, alive)
            except RewardFailed as found:
                # Near the end of the time any completion would time out: all of them are slow, and none is at fault.
                late = isinstance(found, RewardTimedOut) and left < self._seconds / 2
                return error if late or type(found) is not type(error) else found
        return error

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process = None


def _columns(fields: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Lines as columns; a field that a line lacks is None there."""
    names = {name for line in fields for name in line} - {"prompts", "completions"}
    return {name: [line.get(name) for line in fields] for name in sorted(names)}


def _number(score: Any) -> Any:
    if isinstance(score, str):  # NaN and infinities, which JSON has not
        return float(score)
    return score if isinstance(score, int | float) else math.nan if score is None else score
