"""Watches the demo's job, shows a live line, and kills a node at the chosen moment."""

import random
import time
from pathlib import Path

from rich.console import Console

from trireme.protocol import Report
from trireme.resources.status import TERMINAL_STATES, JobState
from trireme_cli.cluster import Cluster, ClusterError
from trireme_cli.demo.fault import FaultPlan
from trireme_cli.demo.live import LiveLine, describe
from trireme_cli.demo.timeline import Fault, Sample, Timeline
from trireme_cli.jobs import AgentClient, Job, find_job
from trireme_local.cluster import LocalCluster

POLL_SECONDS = 0.25


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
        self._plan = FaultPlan(rng) if fault else None
        self._line = LiveLine(console)
        self._agents: AgentClient | None = None
        self._report: Report | None = None
        self.timeline = Timeline()

    def run(self, timeout_seconds: float) -> Job:
        """Watch until the job ends. Raises DemoFailed unless it ends in Succeeded, after the fault if one was asked."""
        begin = time.monotonic()
        with self._line:
            while time.monotonic() - begin < timeout_seconds:
                job = find_job(self._cluster, self._name, "default")
                self._observe(job, time.monotonic() - begin)
                if job.status.state in TERMINAL_STATES:
                    return self._finish(job)
                self._maybe_kill(job, time.monotonic() - begin)
                time.sleep(POLL_SECONDS)  # the demo looks from outside, as a person with kubectl would
        raise DemoFailed(f"the job did not end within {timeout_seconds:.0f} s")

    def _finish(self, job: Job) -> Job:
        if job.status.state is not JobState.SUCCEEDED:
            failure = job.status.failure
            detail = f": {failure.cause} {failure.message}" if failure else ""
            raise DemoFailed(f"the job ended in {job.status.state}{detail}")
        if self._plan is not None and self.timeline.fault is None:
            raise DemoFailed("the job ended before a node was killed, so that nothing was shown")
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
        self._line.show(describe(status, progress, step, now), status.state, now)

    def _maybe_kill(self, job: Job, now: float) -> None:
        report = self._report
        if self._plan is None or self.timeline.fault is not None or report is None or not self._plan.is_due(report):
            return
        assert report.progress is not None
        slot = self._rng.choice(job.status.gang.slots)
        assert slot.node is not None
        # Not as a command of its own: while that started, a save could come between.
        LocalCluster(self._home).kill_node(slot.node)
        self.timeline.fault = Fault(now, slot.node, report.progress.step, report.attempt)
        committed = report.checkpoint.last_committed
        stored = f"the newest checkpoint is of step {committed.step}" if committed else "there is no checkpoint yet"
        self._console.print(
            f"[bold]4.[/] Killed {slot.node} (slot {slot.index}) after step {report.progress.step}; {stored}. "
            "Nobody told the API server."
        )
