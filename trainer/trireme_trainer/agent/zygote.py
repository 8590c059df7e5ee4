"""A process that has imported everything a rank needs, and forks ranks on request.

Imports of torch and the engine take seconds of every rank's start; forked ranks share them. The process stays single-
threaded and opens no device, so that forking it is safe; where that cannot be had it says so and ends, and the agent
starts ranks as plain processes.

    python -m trireme_trainer.agent.zygote --program pretrain --requests FD --replies FD
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import NoReturn

from trireme.protocol import JobConfig
from trireme_trainer.agent.channel import AGENT_PID_ENV, CHANNEL_ENV, die_with_parent
from trireme_trainer.agent.programs import find_program

REQUEST_BYTES = 1 << 20
_PR_SET_NAME = 15


def unsafe_to_fork() -> str | None:
    """Why this process must not be forked, if it must not."""
    if threading.active_count() > 1:
        return f"{threading.active_count()} Python threads"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA is initialised"
    return None


class Zygote:
    """Forks ranks until the agent closes the request socket."""

    def __init__(self, module: str, requests: socket.socket, replies: int) -> None:
        self._main = importlib.import_module(f"{module}.__main__")
        self._requests = requests
        self._replies = replies
        self._children: dict[int, int] = {}
        """pidfd -> pid"""
        self._selector = selectors.DefaultSelector()

    def serve(self) -> None:
        """Answer requests and report ends."""
        self._main.preload(JobConfig.model_validate_json(Path(os.environ["TRIREME_JOB_FILE"]).read_bytes()))
        reason = unsafe_to_fork()
        if reason is not None:
            self._say({"unusable": reason})
            return
        # What is there now is never collected, so that no page of it is copied for reference counts' sake.
        gc.collect()
        gc.freeze()
        self._say({"ready": True})
        self._selector.register(self._requests, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._requests:
                    if not self._take_request():
                        return
                else:
                    self._reap(key.fd)

    def _say(self, message: dict[str, object]) -> None:
        os.write(self._replies, json.dumps(message).encode() + b"\n")

    def _take_request(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._requests, REQUEST_BYTES, 2)
        if not data:
            return False
        channel, output = descriptors
        request = json.loads(data)
        pid = os.fork()
        if pid == 0:
            self._become_rank(request, channel, output)
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)  # both sides do it, so that neither can be too late
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid
        self._selector.register(pidfd, selectors.EVENT_READ)
        self._say({"started": request["id"], "pid": pid})
        return True

    def _reap(self, pidfd: int) -> None:
        pid = self._children.pop(pidfd)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        self._say({"ended": pid, "code": os.waitstatus_to_exitcode(status)})

    def _become_rank(self, request: dict[str, object], channel: int, output: int) -> NoReturn:
        try:
            parent = os.getppid()
            os.setpgid(0, 0)
            die_with_parent(parent)
            self._selector.close()
            for descriptor in (*self._children, self._requests.fileno(), self._replies):
                os.close(descriptor)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.close(output)
            environment = request["environment"]
            assert isinstance(environment, dict)
            os.environ.clear()
            os.environ.update(environment)
            os.environ[CHANNEL_ENV] = str(channel)
            os.environ[AGENT_PID_ENV] = str(parent)
            name = f"rank-{environment['RANK']}".encode()
            ctypes.CDLL(None).prctl(_PR_SET_NAME, name, 0, 0, 0)
            self._main.main()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(1)


def main() -> None:
    """Entry point."""
    die_with_parent(int(os.environ[AGENT_PID_ENV]))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--replies", type=int, required=True)
    arguments = parser.parse_args()
    requests = socket.socket(fileno=arguments.requests)
    Zygote(find_program(arguments.program).ranks, requests, arguments.replies).serve()


if __name__ == "__main__":
    main()
