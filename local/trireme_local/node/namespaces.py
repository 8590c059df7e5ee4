"""Mount namespaces for containers, made by bubblewrap and entered with nsenter.

bwrap starts a program and stays as its parent, in its process group, and hands no signal on. So it only makes the
namespace here: a short-lived holder keeps that open until the container's own first process has entered it, as the
pause container of a pod does. The first process is then a child of the node like any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from trireme_local.node.images import HOST_PATH
from trireme_local.node.rootfs import ContainerRoot, interpreter_trees, visible_trees
from trireme_local.sessions import MARKER

log = logging.getLogger(__name__)

PROGRAMS = ("bwrap", "nsenter")
# Tells its process id once the namespace is complete, and ends when its input is closed.
HOLDER = "echo $$; exec cat"
# A busy computer must not pass for one where it does not work.
PROBE_TIMEOUT_SECONDS = 60.0
# Generous: a busy computer takes seconds, and what takes longer (a mount that hangs) must not hold the pod for ever.
MAKE_TIMEOUT_SECONDS = 120.0
OFF = "pods see this computer's files, and readOnlyRootFilesystem is not enforced"
ENTER_POLL_SECONDS = 0.002
# nsenter's exit codes when the program cannot be started.
EXEC_FAILED_CODES = (126, 127)
_EXEC_FAILED = re.compile(r"nsenter: failed to execute .*: (.+)$")


class NamespacesUnavailable(RuntimeError):
    """This computer gives the node no mount namespaces; the message says why."""


@dataclass(frozen=True)
class MountNamespaces:
    """The programs that make and enter mount namespaces."""

    bwrap: str
    nsenter: str
    version: str

    @classmethod
    def probe(cls) -> MountNamespaces:
        """Make a namespace as a container gets it and start Python in it. Raises `NamespacesUnavailable`."""
        found = {name: shutil.which(name) for name in PROGRAMS}
        for name, path in found.items():
            if path is None:
                raise NamespacesUnavailable(f"{name} is not installed")
        bwrap, nsenter = (os.path.realpath(str(found[name])) for name in PROGRAMS)
        version = subprocess.run([bwrap, "--version"], capture_output=True, text=True, check=False).stdout.split()
        spaces = cls(bwrap, nsenter, version[-1] if version else "unknown")
        with tempfile.TemporaryDirectory(prefix="trireme-probe-") as directory:
            asyncio.run(spaces._try(Path(directory)))
        return spaces

    async def _try(self, directory: Path) -> None:
        root = ContainerRoot(directory / "root", tuple(visible_trees(interpreter_trees())), read_only=True)
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS), self.make(root, "") as holder:
                command = [*self.entering(holder, root), sys.executable, "-S", "-c", ""]
                process = await asyncio.create_subprocess_exec(
                    *command, env={"PATH": HOST_PATH}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
                )
                _, errors = await process.communicate()
        except (OSError, TimeoutError) as error:
            raise NamespacesUnavailable(str(error) or type(error).__name__) from error
        if process.returncode != 0:
            raise NamespacesUnavailable(errors.decode(errors="replace").strip())

    @contextlib.asynccontextmanager
    async def make(self, root: ContainerRoot, marker: str) -> AsyncIterator[int]:
        """A namespace with a fresh root; the id of the process that holds it open.

        It lasts as long as a process is in it. Raises OSError, with bwrap's message where it has one.
        """
        root.make()
        options = root.options()
        with os.fdopen(os.memfd_create("bwrap-options"), "wb") as file:
            file.write(b"".join(word.encode() + b"\0" for word in options))
            file.seek(0)
            process = await asyncio.create_subprocess_exec(
                self.bwrap,
                *("--args", str(file.fileno()), "--", "sh", "-c", HOLDER),
                env={"PATH": HOST_PATH, MARKER: marker},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(file.fileno(),),
                process_group=0,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            try:
                async with asyncio.timeout(MAKE_TIMEOUT_SECONDS):
                    line = await process.stdout.readline()
            except TimeoutError as error:
                raise OSError(f"bwrap has made no namespace in {MAKE_TIMEOUT_SECONDS:g} s") from error
            if not line:
                message = (await process.stderr.read()).decode(errors="replace").strip()
                raise OSError(message or f"bwrap ended with {await process.wait()}")
            yield int(line)
        finally:
            # The group is bwrap and the holder; the end of its input would end the holder too, but later.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    def entering(self, pid: int, root: ContainerRoot) -> list[str]:
        """What stands before a command that is to run in the namespace of the process `pid`, which shows `root`."""
        command = [self.nsenter, "--target", str(pid), "--mount", "--root"]
        # Not the directory of the process, which may have left the one it began in.
        command.append(f"--wd=/proc/{pid}/root{root.start_directory}")
        if not Path("/proc/self/ns/user").samefile(f"/proc/{pid}/ns/user"):
            command += ["--user", "--preserve-credentials"]
        return [*command, "--"]

    async def entered(self, process: asyncio.subprocess.Process) -> bool:
        """Wait until a process that began with `entering` has become its own program; False when it ended unseen."""
        while True:
            program = _program(process.pid)
            if program != self.nsenter:
                break
            await asyncio.sleep(ENTER_POLL_SECONDS)
        if program is None:
            await process.wait()
        return program is not None


def _program(pid: int) -> str | None:
    """The file that a process runs, None when it has ended."""
    with contextlib.suppress(OSError):
        return str(Path(f"/proc/{pid}/exe").readlink())
    return None


def choose(wanted: str) -> MountNamespaces | None:
    """What one of `ISOLATIONS` asks for; one line of the log says what came of it.

    Raises `NamespacesUnavailable` where all pods are to be isolated and it does not work.
    """
    if wanted == "none":
        log.info("isolation is off, as asked: %s", OFF)
        return None
    try:
        found = MountNamespaces.probe()
    except NamespacesUnavailable as error:
        if wanted == "all":
            raise
        log.warning("isolation is off (%s): %s", error, OFF)
        return None
    whose = "all pods" if wanted == "all" else "pods that ask for a read-only root"
    log.info("isolation is on, by bubblewrap %s: %s have file systems of their own", found.version, whose)
    return found


def bytecode_directory() -> Path | None:
    """Where compiled modules are kept for containers, beside the interpreter's packages; None where that is read-only.

    Containers see the packages read-only, and compiling all of torch again at each start takes longer than the start.
    """
    directory = Path(sys.prefix) / ".bytecode"
    with contextlib.suppress(OSError):
        directory.mkdir(exist_ok=True)
        return directory if os.access(directory, os.W_OK) else None
    return None


def exec_failure(code: int | None, last_line: str) -> str:
    """Why nsenter could not start the program, by its exit code and what it wrote; "" when it could."""
    if code not in EXEC_FAILED_CODES:
        return ""
    found = _EXEC_FAILED.search(last_line)
    return found.group(1) if found else ""
