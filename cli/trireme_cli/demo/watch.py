"""Watches the demo's job, shows a live line, and kills a node at the chosen moment."""

import random
import time
from pathlib import Path

from rich.console import Console

from trireme.protocol import Report
from trireme.resources.status import TERMINAL_STATES, JobState
from trireme_cli.cluster import Cluster, ClusterError
from trireme_cli.demo.timeline import Fault, Sample, Timeline
from trireme_cli.jobs import AgentClient, Job, find_job
from trireme_local.cluster import LocalCluster

POLL_SECONDS = 0.25
PLAIN_LINE_SECONDS = 5.0


class DemoFailed(Exception):
    """The job did not end as it should have; the message says how it ended."""


class Watcher:
    """Follows one job from its creation to its end."""

    def __init__(
        self, cluster: Cluster, name: str, home: Path, console: Console, rng: random.Random, *, fault: bool
    ) -> None:
        self._cluster = cluster
        self._name = name
        self._home = home
        self._console = console
        self._rng = rng
        self._wants_fault = fault
        self._fault_step: int | None = None
        self._agents: AgentClient | None = None
        self._report: Report | None = None
        self._last_plain_line = 0.0
        self._last_state = ""
        self.timeline = Timeline()

    def run(self, timeout_seconds: float) -> Job:
        """Watch until the job ends. Raises DemoFailed unless it ends in Succeeded."""
        begin = time.monotonic()
        while time.monotonic() - begin < timeout_seconds:
            job = find_job(self._cluster, self._name, "default")
            self._observe(job, time.monotonic() - begin)
            if job.status.state in TERMINAL_STATES:
                return self._finish(job)
            self._maybe_kill(job, time.monotonic() - begin)
            time.sleep(POLL_SECONDS)  # the demo looks from outside, as a person with kubectl would
        raise DemoFailed(f"the job did not end within {timeout_seconds:.0f} s")

    def _finish(self, job: Job) -> Job:
        if self._console.is_terminal:
            self._console.print()
        if job.status.state is not JobState.SUCCEEDED:
            failure = job.status.failure
            detail = f": {failure.cause} {failure.message}" if failure else ""
            raise DemoFailed(f"the job ended in {job.status.state}{detail}")
        return job

    def _observe(self, job: Job, now: float) -> None:
        status = job.status
        leader = next((s for s in status.gang.slots if s.index == 0), None)
        self._report = None
        if leader is not None and leader.address:
            try:
                self._agents = self._agents or AgentClient(self._cluster, job)
                self._report = self._agents.report(leader.address)
            except (ClusterError, KeyError):
                self._agents = None  # the Secret is not there yet
        progress = self._report.progress if self._report else None
        step = progress.step if progress else (status.progress.step if status.progress else 0)
        report_attempt = self._report.attempt if self._report and progress else 0
        self.timeline.add(
            Sample(now, status.state, status.gang.attempt, step, progress.loss if progress else None, report_attempt)
        )
        fault = self.timeline.fault
        resumed = status.gang.resume_from
        if fault and status.gang.attempt > fault.attempt and resumed is not None:
            self.timeline.record_resume(resumed.step)
        self._show(job, step, now)

    def _show(self, job: Job, step: int, now: float) -> None:
        status = job.status
        progress = self._report.progress if self._report else None
        total = progress.total_steps if progress else (status.progress.total_steps if status.progress else 0)
        parts = [f"{now:5.0f} s", f"{status.state:<10}", f"step {step}/{total or '?'}"]
        if progress is not None and progress.loss is not None:
            parts.append(f"loss {progress.loss:.3f}")
            if progress.tokens_per_second:
                parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
            if progress.tflops_per_device:
                parts.append(f"{progress.tflops_per_device * 1000:.1f} GFLOP/s/device")
            if progress.mfu is not None:
                parts.append(f"MFU {progress.mfu:.0%} ({progress.mfu_basis})")
            if progress.step_seconds and total:
                parts.append(f"ETA {(total - step) * progress.step_seconds:.0f} s")
        parts.append(f"restarts {status.restarts.total}")
        line = " | ".join(parts)
        if self._console.is_terminal:
            self._console.print(f"{line:<{self._console.width - 1}.{self._console.width - 1}}", end="\r", markup=False)
        elif now - self._last_plain_line >= PLAIN_LINE_SECONDS or status.state != self._last_state:
            self._console.print(line, markup=False, soft_wrap=True)
            self._last_plain_line = now
        self._last_state = status.state

    def _maybe_kill(self, job: Job, now: float) -> None:
        progress = self._report.progress if self._report else None
        if not self._wants_fault or self.timeline.fault is not None or progress is None or self._report is None:
            return
        if self._fault_step is None:
            total = progress.total_steps
            self._fault_step = self._rng.randint(int(total * 0.3) + 1, int(total * 0.7) - 1)
        committed = self._report.checkpoint.last_committed
        on_boundary = committed is None or progress.step <= committed.step
        if progress.step < self._fault_step or on_boundary or self._report.checkpoint.in_progress_step is not None:
            return
        slot = self._rng.choice(job.status.gang.slots)
        assert slot.node is not None
        assert committed is not None
        # Not as a command of its own: while that started, a save could come between.
        LocalCluster(self._home).kill_node(slot.node)
        self.timeline.fault = Fault(now, slot.node, progress.step, self._report.attempt, committed.step)
        self._console.print(
            f"\n[bold]4.[/] Killed {slot.node} (slot {slot.index}) after step {progress.step}; "
            f"the newest checkpoint is of step {committed.step}. Nobody told the API server."
        )
