"""One container of a pod: prepared, started, probed, restarted, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
import uuid
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from trireme_local.events import now_text
from trireme_local.kube import JsonObject
from trireme_local.node.context import pause
from trireme_local.node.launch import Launch, Sandbox, StartRefused, prepare
from trireme_local.node.logs import log_directory
from trireme_local.node.probes import (
    ProbeResult,
    ProbeUnsupported,
    http_get,
    watch_probe,
)
from trireme_local.node.processes import ContainerProcess, run_probe_command
from trireme_local.node.status import ContainerRecord, should_restart, terminated, waiting
from trireme_local.quantities import parse_quantity

TERMINATION_MESSAGE_BYTES = 4096
TERMINATION_LOG_BYTES = 2048


class Container:
    """Runs one container through its restarts; `record` always tells its state."""

    def __init__(self, sandbox: Sandbox, spec: JsonObject, record: ContainerRecord) -> None:
        self.sandbox = sandbox
        self.spec = spec
        self.record = record
        self.process: ContainerProcess | None = None
        self.started = asyncio.Event()
        self.launch: Launch | None = None
        self._stopping = False
        self._delay_seconds = 0.0

    @property
    def name(self) -> str:
        """The container's name."""
        return str(self.spec["name"])

    @property
    def directory(self) -> Path:
        """Where the container's logs and root directory lie."""
        return log_directory(self.sandbox.directory, self.name)

    @property
    def marker(self) -> str:
        """Environment marker of this container's processes."""
        return f"{self.sandbox.node.marker}/{self.sandbox.uid}/{self.name}"

    @property
    def memory_limit_bytes(self) -> int | None:
        """The container's memory limit."""
        limit = ((self.spec.get("resources") or {}).get("limits") or {}).get("memory")
        return int(parse_quantity(limit)) if limit is not None else None

    def log_path(self, restart: int) -> Path:
        """Log of the run with that restart count."""
        return self.directory / f"{restart}.log"

    async def run(self, restart_policy: str) -> None:
        """Run the container until it ends for good or its pod stops."""
        while not self.sandbox.stopping.is_set():
            try:
                self.launch = await prepare(self.sandbox, self.spec, self.directory)
            except StartRefused as error:
                await self._refused(error)
                continue
            if self.record.terminated is not None:
                self.record.last_state = self.record.state
                self.record.restart_count += 1
            began = time.monotonic()
            code = await self._execute(self.launch)
            if self.sandbox.stopping.is_set() or not should_restart(restart_policy, code):
                return
            await self._back_off(time.monotonic() - began)

    async def _refused(self, error: StartRefused) -> None:
        """Report why the container cannot start, and wait before the next try."""
        timings = self.sandbox.node.timings
        state = waiting(error.reason, str(error))
        if self.record.state != state:
            self.record.state = state
            self.sandbox.event("Warning", "Failed", f"Error: {error.reason}: {error}")
            self.sandbox.changed()
        if error.reason != "ErrImagePull":
            await pause(self.sandbox.stopping, timings.config_retry_seconds)
            return
        self._grow_delay()
        if await pause(self.sandbox.stopping, 1.0):
            return
        message = f'Back-off pulling image "{self.spec["image"]}": {error}'
        self.record.state = waiting("ImagePullBackOff", message)
        self.sandbox.event("Normal", "BackOff", f'Back-off pulling image "{self.spec["image"]}"')
        self.sandbox.changed()
        await pause(self.sandbox.stopping, self._delay_seconds)

    def _grow_delay(self) -> None:
        timings = self.sandbox.node.timings
        grown = self._delay_seconds * 2 if self._delay_seconds else timings.backoff_initial_seconds
        self._delay_seconds = min(grown, timings.backoff_max_seconds)

    async def _back_off(self, ran_seconds: float) -> None:
        """Wait before a restart: not at all after the first exit, then 10 s, 20 s, ... 300 s."""
        timings = self.sandbox.node.timings
        if ran_seconds > timings.backoff_reset_seconds:
            self._delay_seconds = 0.0
        delay_seconds = self._delay_seconds
        self._grow_delay()
        if delay_seconds == 0:
            return
        ended = self.record.state
        metadata = self.sandbox.facts.pod["metadata"]
        message = (
            f"back-off {delay_seconds:g}s restarting failed container={self.name} "
            f"pod={metadata['name']}_{metadata['namespace']}({metadata['uid']})"
        )
        self.record.last_state = ended
        self.record.state = waiting("CrashLoopBackOff", message)
        self.sandbox.event("Warning", "BackOff", f"Back-off restarting failed container {self.name}")
        self.sandbox.changed()
        await pause(self.sandbox.stopping, delay_seconds)
        # The next start counts from the run that ended.
        self.record.state = ended

    async def _execute(self, launch: Launch) -> int:
        """Start the process, watch it, and record how it ended; its exit code."""
        record = self.record
        self._stopping = False
        self.started.clear()
        launch.termination_path.write_bytes(b"")
        record.image, record.image_id = self.spec["image"], f"local://{launch.image.name}"
        record.container_id = f"trireme-local://{uuid.uuid4().hex}"
        self.log_path(record.restart_count - 2).unlink(missing_ok=True)
        try:
            self.process = await ContainerProcess.start(
                launch.arguments,
                env=launch.env,
                directory=launch.directory,
                log_path=self.log_path(record.restart_count),
                marker=self.marker,
                namespaces=self.sandbox.namespaces,
                root=launch.root,
            )
        except OSError as error:
            message = f"failed to start container: exec: {launch.arguments[0]!r}: {error.strerror or error}"
            record.state = terminated(128, "StartError", None, message, record.container_id)
            self.sandbox.event("Warning", "Failed", f"Error: {message}")
            self.sandbox.changed()
            return 128
        began = now_text()
        record.state = {"running": {"startedAt": began}}
        self.sandbox.event("Normal", "Started", f"Container started: {self.name}")
        watchers = self._watchers()
        if not self.spec.get("startupProbe"):
            self._mark_started()
        self.sandbox.changed()
        try:
            code = await self.process.wait()
        finally:
            for task in watchers:
                task.cancel()
        self._record_exit(launch, code, began)
        return code

    def _record_exit(self, launch: Launch, code: int, began: str) -> None:
        assert self.process is not None
        reason = "OOMKilled" if self.process.oom_killed else "Completed" if code == 0 else "Error"
        message = self._termination_message(launch.termination_path, code)
        self.record.state = terminated(code, reason, began, message, self.record.container_id)
        self.record.ready = False
        self.record.started = False
        self.process = None
        self.sandbox.changed()

    def _termination_message(self, path: Path, code: int) -> str:
        with contextlib.suppress(OSError):
            if text := path.read_bytes()[:TERMINATION_MESSAGE_BYTES]:
                return text.decode(errors="replace")
        if code == 0 or self.spec.get("terminationMessagePolicy") != "FallbackToLogsOnError":
            return ""
        lines = self.log_path(self.record.restart_count).read_bytes()[-4 * TERMINATION_LOG_BYTES :].splitlines()
        text = b"\n".join(line.split(b" ", 3)[-1] for line in lines[-80:])
        return text[-TERMINATION_LOG_BYTES:].decode(errors="replace")

    def _mark_started(self) -> None:
        self.record.started = True
        self.record.ready = not self.spec.get("readinessProbe")
        self.started.set()

    def _watchers(self) -> list[asyncio.Task[None]]:
        """Tasks for the probes and the postStart hook of this run."""
        jobs: list[Coroutine[Any, Any, None]] = []
        if probe := self.spec.get("startupProbe"):
            jobs.append(self._probe("Startup", probe, self._on_startup(probe)))
        if probe := self.spec.get("readinessProbe"):
            jobs.append(self._probe("Readiness", probe, self._on_readiness))
        if probe := self.spec.get("livenessProbe"):
            jobs.append(self._probe("Liveness", probe, self._on_liveness(probe)))
        if hook := (self.spec.get("lifecycle") or {}).get("postStart"):
            jobs.append(self._post_start(hook))
        return [asyncio.create_task(job) for job in jobs]

    async def _probe(self, kind: str, probe: JsonObject, on_result: Callable[[bool, ProbeResult], bool]) -> None:
        if kind != "Startup":
            await self.started.wait()

        def hear(reached: bool, result: ProbeResult) -> bool:
            if kind != "Readiness" and self.sandbox.stopping.is_set():
                # As with a kubelet, only readiness is probed once the pod is being stopped.
                return True
            if not result.ok:
                self.sandbox.event("Warning", "Unhealthy", f"{kind} probe failed: {result.message}")
            return on_result(reached, result)

        try:
            await watch_probe(self.spec, probe, self.sandbox.facts.pod_ip, self.execute, hear)
        except ProbeUnsupported as error:
            self.sandbox.event("Warning", "Unhealthy", f"{kind} probe errored: {error}")

    def _on_startup(self, probe: JsonObject) -> Callable[[bool, ProbeResult], bool]:
        def hear(reached: bool, result: ProbeResult) -> bool:
            if reached and result.ok:
                self._mark_started()
                self.sandbox.changed()
            elif reached:
                self._restart_for("startup", probe)
            return reached

        return hear

    def _on_readiness(self, reached: bool, result: ProbeResult) -> bool:
        if reached and self.record.ready != result.ok:
            self.record.ready = result.ok
            self.sandbox.changed()
        return False

    def _on_liveness(self, probe: JsonObject) -> Callable[[bool, ProbeResult], bool]:
        def hear(reached: bool, result: ProbeResult) -> bool:
            if reached and not result.ok:
                self._restart_for("liveness", probe)
                return True
            return False

        return hear

    def _restart_for(self, kind: str, probe: JsonObject) -> None:
        """Stop the process because a probe failed; the restart policy decides what follows."""
        self.sandbox.event("Normal", "Killing", f"Container {self.name} failed {kind} probe, will be restarted")
        default = self.sandbox.facts.pod["spec"].get("terminationGracePeriodSeconds", 30)
        grace = probe.get("terminationGracePeriodSeconds", default)
        self._killer = asyncio.create_task(self.stop(float(grace)))

    async def _post_start(self, hook: JsonObject) -> None:
        if not await self._run_hook(hook, "PostStart"):
            await self.stop(0)

    async def _run_hook(self, hook: JsonObject, kind: str) -> bool:
        """Run a lifecycle handler; False, with an event, when it failed."""
        error = ""
        if "exec" in hook:
            try:
                code, output = await self.execute(hook["exec"]["command"], 3600.0)
                error = f"exit code {code}: {output.strip()}" if code else ""
            except OSError as failure:
                error = str(failure)
        elif "httpGet" in hook:
            result = await http_get(self.spec, hook["httpGet"], self.sandbox.facts.pod_ip, 30.0)
            error = "" if result.ok else result.message
        elif "sleep" in hook:
            await asyncio.sleep(float(hook["sleep"]["seconds"]))
        if error:
            self.sandbox.event("Warning", f"Failed{kind}Hook", f"{kind}Hook failed: {error}")
        return not error

    async def execute(self, command: list[str], timeout_seconds: float) -> tuple[int, str]:
        """Run a command with the container's environment; (exit code, output). Raises OSError, TimeoutError."""
        launch, process = self.launch, self.process
        if launch is None or process is None:
            raise OSError(f"container {self.name} is not running")
        words = [launch.rewriting.rewrite(part) for part in command]
        if self.sandbox.namespaces is not None and launch.root is not None:
            words = [*self.sandbox.namespaces.entering(process.pid, launch.root), *words]
        return await run_probe_command(
            words,
            env=launch.env,
            directory=launch.directory,
            marker=self.marker,
            timeout_seconds=timeout_seconds,
        )

    async def stop(self, grace_seconds: float) -> None:
        """preStop, SIGTERM, and SIGKILL once the grace period is over."""
        process = self.process
        if process is None or not process.running:
            return
        deadline = time.monotonic() + grace_seconds
        if not self._stopping:
            self._stopping = True
            hook = (self.spec.get("lifecycle") or {}).get("preStop")
            if hook and grace_seconds > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(grace_seconds):
                        await self._run_hook(hook, "PreStop")
        number = signal.Signals[(self.spec.get("lifecycle") or {}).get("stopSignal") or "SIGTERM"]
        if grace_seconds > 0:
            process.signal(number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await process.process.wait()
        if process.running:
            process.signal(signal.SIGKILL)
            await process.kill_remains()
