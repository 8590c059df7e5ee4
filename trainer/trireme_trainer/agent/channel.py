"""A rank's end of the channel to its agent: a socket pair that carries JSON lines in both directions."""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable

from trireme.protocol import Section
from trireme.protocol.base import WireModel
from trireme_trainer.agent.messages import TO_RANK, Beat, CheckpointState, Drain, Inputs, NewSettings, SectionEvent

BEAT_SECONDS = 1.0
CHANNEL_ENV = "TRIREME_RANK_FD"
AGENT_PID_ENV = "TRIREME_AGENT_PID"
_PR_SET_PDEATHSIG = 1


class AgentGone(RuntimeError):
    """The agent closed the channel: the rank has no business left."""


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends (Linux prctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # the parent ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


class RankChannel:
    """Sends events to the agent, keeps its orders, and beats once a second from a thread of its own."""

    def __init__(self, connection: socket.socket) -> None:
        self.step = 0
        self._socket = connection
        self._lock = threading.Lock()
        self._last_sign = time.monotonic()
        self._inputs: queue.Queue[Inputs | None] = queue.Queue()
        self._settings: NewSettings | None = None
        self._drain = threading.Event()
        self._busy = threading.Event()
        threading.Thread(target=self._receive, name="agent-orders", daemon=True).start()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    @classmethod
    def from_environment(cls) -> RankChannel:
        """The channel whose descriptor the agent left in the environment."""
        return cls(socket.socket(fileno=int(os.environ[CHANNEL_ENV])))

    def send(self, message: WireModel) -> None:
        """Send one event. Raises AgentGone."""
        self.alive()
        try:
            with self._lock:
                self._socket.sendall(message.to_json().encode() + b"\n")
        except OSError as error:
            raise AgentGone(f"the agent closed the channel: {error}") from error

    def alive(self) -> None:
        """Note that the main loop is moving."""
        self._last_sign = time.monotonic()

    def enter(self, section: Section, step: int) -> None:
        """Say that the rank enters a section."""
        self.step = step
        self.send(SectionEvent(section=section, step=step))

    @property
    def drain_requested(self) -> bool:
        """Whether the ranks should save and stop."""
        return self._drain.is_set()

    @property
    def checkpoint_busy(self) -> bool:
        """Whether an earlier checkpoint is still on its way to the store."""
        return self._busy.is_set()

    def expect_upload(self) -> None:
        """Hold the next periodic checkpoint back until the agent says that this one is in the store."""
        self._busy.set()

    def take_settings(self) -> NewSettings | None:
        """Settings that arrived since the last call."""
        settings, self._settings = self._settings, None
        return settings

    def wait_for_inputs(self, on_wait: Callable[[], None] = lambda: None) -> Inputs:
        """Block until the node's inputs are on its disk. Raises AgentGone."""
        while True:
            try:
                inputs = self._inputs.get(timeout=0.5)
            except queue.Empty:
                self.alive()
                on_wait()
                continue
            if inputs is None:
                raise AgentGone("the agent closed the channel before the inputs were there")
            return inputs

    def _receive(self) -> None:
        with self._socket.makefile("rb") as lines:
            for line in lines:
                match TO_RANK.validate_json(line):
                    case Inputs() as inputs:
                        self._inputs.put(inputs)
                    case Drain():
                        self._drain.set()
                    case NewSettings() as settings:
                        self._settings = settings
                    case CheckpointState(busy=busy):
                        (self._busy.set if busy else self._busy.clear)()
        self._inputs.put(None)

    def _beat(self) -> None:
        while True:
            beat = Beat(loop_seconds=time.monotonic() - self._last_sign)
            try:
                with self._lock:
                    self._socket.sendall(beat.to_json().encode() + b"\n")
            except OSError:
                return
            time.sleep(BEAT_SECONDS)
