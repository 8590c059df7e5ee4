"""The same faults under `torchrun --max-restarts`: two agents of two ranks each, one for every pod of the job."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from benchmarks.common.local import Bench, BenchmarkFailed, wait_for
from benchmarks.recovery.table import RANK, TORCHRUN, Recovery

from trireme.protocol import JobConfig

START_TIMEOUT_SECONDS = 300.0
RECOVERY_TIMEOUT_SECONDS = 300.0
MAX_RESTARTS = 100


class TorchrunGang:
    """Two torchrun agents and their ranks."""

    def __init__(self, bench: Bench, config: JobConfig, name: str, interval_steps: int) -> None:
        self._directory = bench.directory / name
        self._directory.mkdir()
        self._job_file = self._directory / "job.json"
        self._job_file.write_text(config.to_json())
        self._events = self._directory / "events.jsonl"
        self._nodes, self._per_node = config.slots, config.ranks_per_slot
        self._arguments = [str(self._job_file), str(self._events), str(interval_steps)]
        self._arguments.append(f"s3://{bench.store.bucket}/benchmarks/{name}")
        self._environment = os.environ | bench.store.environment()
        self._environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        # Without it restarted ranks read the last round's addresses and never connect (pytorch/pytorch#135712).
        self._environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        self._environment["AWS_DEFAULT_REGION"] = self._environment["AWS_REGION"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._agents: dict[int, subprocess.Popen[bytes]] = {}

    def start_agent(self, node: int) -> None:
        """Start one node's torchrun; the one that starts first hosts the rendezvous."""
        command = [sys.executable, "-m", "torch.distributed.run"]
        command += [f"--nnodes={self._nodes}", f"--nproc-per-node={self._per_node}", f"--max-restarts={MAX_RESTARTS}"]
        command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{self._port}", "--rdzv-id=recovery"]
        command += ["--local-addr=127.0.0.1", "--module", "benchmarks.recovery.torchrun_baseline", *self._arguments]
        with (self._directory / f"agent-{node}.log").open("ab") as log:
            self._agents[node] = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def start(self) -> None:
        """Start all agents."""
        self.start_agent(0)

        def listens() -> bool | None:
            with socket.socket() as probe:
                return True if probe.connect_ex(("127.0.0.1", self._port)) == 0 else None

        wait_for("torchrun's rendezvous", START_TIMEOUT_SECONDS, listens)
        for node in range(1, self._nodes):
            self.start_agent(node)

    def kill_agent(self, node: int) -> None:
        """SIGKILL an agent and its ranks, as if their pod or machine were gone."""
        for process in self._tree(node):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._agents[node].wait()

    def _tree(self, node: int) -> list[psutil.Process]:
        try:
            agent = psutil.Process(self._agents[node].pid)
            return [agent, *agent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def log_tails(self) -> str:
        """The end of every agent's log."""
        logs = sorted(self._directory.glob("agent-*.log"))
        return "\n".join(f"{log.name}:\n{log.read_text(errors='replace')[-4000:]}" for log in logs)

    def close(self) -> None:
        """End everything."""
        for node in self._agents:
            self.kill_agent(node)

    def events(self) -> list[dict[str, Any]]:
        """All events so far; a line that is being written is left for later."""
        if not self._events.exists():
            return []
        lines = self._events.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def last_step(self) -> int:
        """The step that rank 0 completed last."""
        return next((int(e["step"]) for e in reversed(self.events()) if e["event"] == "step"), 0)

    def steps_since_save(self) -> int | None:
        """Steps that rank 0 completed in this incarnation after its last save; None before that."""
        count = 0
        for event in reversed(self.events()):
            if event["rank"] == 0:
                if event["event"] == "saved":
                    return count
                if event["event"] != "step":
                    return None
                count += 1
        return None

    def pids(self) -> dict[int, int]:
        """Rank -> process of its newest incarnation."""
        return {e["rank"]: e["pid"] for e in self.events() if e["event"] == "started"}


def measure(
    bench: Bench, config: JobConfig, name: str, faults: Sequence[str], interval_steps: int, steps_after: int
) -> list[Recovery]:
    """One gang that meets the faults one after the other."""
    gang = TorchrunGang(bench, config, name, interval_steps)
    try:
        gang.start()
        return [_inject(gang, fault, steps_after) for fault in faults]
    except BenchmarkFailed as error:
        raise BenchmarkFailed(f"{error}\n{gang.log_tails()}") from error
    finally:
        gang.close()


def _inject(gang: TorchrunGang, fault: str, steps_after: int) -> Recovery:
    def ready() -> bool | None:
        since = gang.steps_since_save()
        return True if since is not None and since >= steps_after else None

    wait_for(f"{steps_after} steps after a save", START_TIMEOUT_SECONDS, ready)
    old, step, killed_at = gang.pids(), gang.last_step(), time.time()
    if fault == RANK:
        os.kill(old[max(old)], signal.SIGKILL)
    else:
        gang.kill_agent(1)
        # A kubelet starts the container again; for a lost machine this stands for a person who is quick.
        gang.start_agent(1)
    detected_at = _when_gone(list(old.values()))

    def recovered() -> list[dict[str, Any]] | None:
        events = [e for e in gang.events() if e["at"] > killed_at and e["pid"] not in old.values()]
        return events if any(e["event"] == "step" and e["step"] > step for e in events) else None

    events = wait_for(f"torchrun: step {step + 1} after {fault}", RECOVERY_TIMEOUT_SECONDS, recovered)
    caught_up = next(e for e in events if e["event"] == "step" and e["step"] > step)
    last = [e for e in events if e["pid"] == caught_up["pid"]]
    formed, restored = (next(e for e in last if e["event"] == name) for name in ("formed", "restored"))
    incarnations = len({e["pid"] for e in events if e["event"] == "started" and e["rank"] == 0})
    return Recovery(
        contender=TORCHRUN,
        fault=fault,
        killed_at=killed_at,
        detected_at=detected_at,
        formed_at=formed["at"],
        restored_at=restored["at"],
        caught_up_at=caught_up["at"],
        fault_step=step,
        resume_step=restored["step"],
        restarts=incarnations,
    )


def _when_gone(pids: Sequence[int]) -> float:
    """Unix time at which none of the processes runs any more."""

    def look() -> float | None:
        for pid in pids:
            stat = Path(f"/proc/{pid}/stat")
            with contextlib.suppress(OSError):
                if stat.read_text().rsplit(")", 1)[1].split()[0] not in "ZX":
                    return None
        return time.time()

    return wait_for("the end of the old ranks", RECOVERY_TIMEOUT_SECONDS, look, every_seconds=0.1)
