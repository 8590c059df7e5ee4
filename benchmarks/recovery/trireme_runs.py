"""Faults in a Trireme job: each waits for a committed checkpoint and some steps after it, then kills."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.common.local import Bench, BenchmarkFailed, RunningJob, example_job, wait_for
from benchmarks.recovery.table import NODE, POD, RANK, TRIREME, Recovery

from trireme.checkpoints.history import StepRecord
from trireme.protocol import Report
from trireme.resources.status import JobState, JobStatus
from trireme_local.sessions import marked_processes, node_marker, send_all

STEPS = 1_000_000
START_TIMEOUT_SECONDS = 300.0
RECOVERY_TIMEOUT_SECONDS = 300.0
VICTIM_SLOT = 1
"""Not the slot of rank 0, which also hosts torchrun's rendezvous on the other side."""


@dataclass(frozen=True)
class Injected:
    """A fault, and what the gang's leader said once it was made good."""

    fault: str
    attempt: int
    step: int
    killed_at: float
    after: Report


def measure(bench: Bench, name: str, faults: Sequence[str], interval_steps: int, steps_after: int) -> list[Recovery]:
    """One job that meets the faults one after the other."""
    job = bench.start(example_job(name, steps=STEPS, interval_steps=interval_steps))
    injected = [_inject(bench, job, fault, steps_after) for fault in faults]
    job.patch_spec({"suspend": True})  # so that all step records are in the store
    status = job.wait_state(JobState.SUSPENDED, RECOVERY_TIMEOUT_SECONDS)
    newest = injected[-1].after.attempt

    def stored() -> list[StepRecord] | None:
        records = job.history()
        return records if any(r.attempt >= newest for r in records) else None

    records = wait_for("step records", 60, stored)
    job.delete()
    for node in bench.local.state().nodes:
        bench.local.revive_node(node)
    return [_recovery(entry, status, records) for entry in injected]


def _inject(bench: Bench, job: RunningJob, fault: str, steps_after: int) -> Injected:
    def ready() -> Report | None:
        report = job.report()
        if report is None or report.progress is None or report.checkpoint.in_progress_step is not None:
            return None
        saved = report.checkpoint.last_committed
        return report if saved is not None and report.progress.step >= saved.step + steps_after else None

    wait_for(f"{steps_after} steps after a checkpoint", START_TIMEOUT_SECONDS, ready)
    slot = next(s for s in job.status.gang.slots if s.index == VICTIM_SLOT)
    assert slot.node is not None
    victims = []
    if fault == POD:
        marker = node_marker(bench.local.directory / "nodes" / slot.node, slot.node)
        victims = marked_processes(f"{marker}/{slot.pod_uid}/")
    victim_report = job.report(VICTIM_SLOT, slot.address)
    before = job.report()
    if before is None or before.progress is None or victim_report is None:
        raise BenchmarkFailed(f"{job.name}: the agents do not answer before the fault")
    step, killed_at = before.progress.step, time.time()
    if fault == RANK:
        os.kill(victim_report.ranks[-1].pid, signal.SIGKILL)
    elif fault == POD:
        send_all(victims, signal.SIGKILL)
    elif fault == NODE:
        bench.local.kill_node(slot.node)
    else:
        raise ValueError(f"no fault {fault!r}")
    attempt = before.attempt

    def recovered() -> Report | None:
        report = job.report()
        if report is None or report.progress is None or report.attempt == attempt:
            return None
        return report if report.progress.step > step else None

    after = wait_for(f"{job.name}: step {step + 1} after the fault", RECOVERY_TIMEOUT_SECONDS, recovered)
    return Injected(fault, attempt, step, killed_at, after)


def _recovery(entry: Injected, status: JobStatus, records: Sequence[StepRecord]) -> Recovery:
    """From what the product recorded: the restart's times in the status, the steps in the store."""
    attempt = entry.after.attempt
    record = next((r for r in status.restarts.history if r.attempt == entry.attempt), None)
    steps = [r for r in records if r.attempt == attempt]
    if record is None or not steps:
        raise BenchmarkFailed(f"attempt {entry.attempt}: restart record {record}, {len(steps)} steps of {attempt}")
    began = steps[0].completed_at.timestamp() - steps[0].seconds
    caught_up = next(r for r in steps if r.step > entry.step)
    return Recovery(
        contender=TRIREME,
        fault=entry.fault,
        killed_at=entry.killed_at,
        detected_at=record.raised_at.timestamp(),
        formed_at=began - entry.after.seconds_by_category["restore"],
        restored_at=began,
        caught_up_at=caught_up.completed_at.timestamp(),
        fault_step=entry.step,
        resume_step=steps[0].step - 1,
        restarts=attempt - entry.attempt,
    )
