"""A gang of agents on loopback addresses with a real S3 server, and an operator's part played over HTTP."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trireme.planning.planner import plan
from trireme.planning.types import PlanRequest
from trireme.protocol import (
    AgentState,
    Host,
    JobConfig,
    JobIdentity,
    Phase,
    Report,
    Settings,
    StoreConfig,
    Target,
)
from trireme.resources.pretrain import PretrainSpec
from trireme_trainer.agent.channel import die_with_parent

TOKEN = "secret-of-this-test"
BUCKET = "bucket"
ACCESS_KEY, SECRET_KEY = "testaccess", "testsecret"
RCLONE = Path(sys.executable).with_name("rclone")


die_with_this = functools.partial(die_with_parent, os.getpid())
"""So that a test run that is killed leaves no gang training behind."""


def free_port(address: str = "127.0.0.1") -> int:
    with socket.create_server((address, 0)) as server:
        return int(server.getsockname()[1])


class S3Server:
    """rclone serve s3 over a directory; objects are plain files, so that a test can damage them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.bucket = directory / BUCKET
        self.bucket.mkdir(parents=True, exist_ok=True)
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [RCLONE, "serve", "s3", "--addr", f"127.0.0.1:{self.port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}",
             "--dir-cache-time", "1s", "--config", "/dev/null", str(self.directory)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0, preexec_fn=die_with_this,
        )  # fmt: skip
        wait_for(self._answers, 60)

    def settle(self) -> None:
        """Wait until the server looks at its directories anew, after files were changed under it."""
        time.sleep(1.5)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.5):
            return True
        return False

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}


def wait_for(condition: Callable[[], Any], seconds: float, every: float = 0.1) -> Any:
    """The first true value of the condition; fails after some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(every)
    raise AssertionError(f"{condition} did not come true in {seconds} s")


def make_spec(**changes: Any) -> dict[str, Any]:
    """A tiny model on the standard library's json and email sources."""
    stdlib = str(Path(json.__file__).parent.parent)
    spec: dict[str, Any] = {
        "model": {
            "shape": {
                "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2,
            }
        },
        "data": {
            "sources": [{"uri": stdlib, "include": ["json/*.py", "email/*.py"]}],
            "sequenceLength": 32,
            "validation": {"sources": [{"uri": stdlib, "include": ["csv.py"]}]},
        },
        "training": {
            "globalBatchSize": 8, "steps": 40, "precision": "fp32", "optimizer": {"learningRate": 0.003},
            "validationIntervalSteps": 1000, "validationBatches": 2, "microBatchSize": 4,
        },
        "workers": {"nodes": 2, "devicesPerNode": 1, "accelerator": {"kind": "cpu"}},
        "checkpoint": {"uri": f"s3://{BUCKET}/jobs", "intervalSteps": 10},
    }  # fmt: skip
    for path, value in changes.items():
        place = spec
        *parents, last = path.split("__")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return spec


def make_job(server: S3Server, spec_dict: dict[str, Any], *, name: str = "job", uid: str | None = None) -> JobConfig:
    spec = PretrainSpec.model_validate(spec_dict)
    axes = spec.parallelism
    request = PlanRequest(
        model=spec.shape,
        sequence_length=spec.data.sequence_length,
        global_batch_size=spec.training.global_batch_size,
        precision=spec.training.precision,
        micro_batch_size=spec.training.micro_batch_size,
        tensor=axes.tensor,
        pipeline=axes.pipeline,
        data=axes.data,
        context=axes.context,
        nodes=spec.workers.nodes,
        devices_per_node=spec.workers.devices_per_node,
        accelerator="cpu",
    )
    return JobConfig(
        protocol="1.0",
        job=JobIdentity(kind="PretrainJob", namespace="default", name=name, uid=uid or str(uuid.uuid4())),
        program="pretrain",
        spec=spec.to_manifest(),
        plan=plan(request).model_dump(mode="json", by_alias=True),
        slots=spec.workers.nodes,
        ranks_per_slot=spec.workers.devices_per_node,
        store=StoreConfig(uri=spec.checkpoint.uri, endpoint=server.endpoint, path_style=True),
    )


@dataclass
class AgentProcess:
    """One pod."""

    slot: int
    address: str
    port: int
    metrics_port: int
    process: subprocess.Popen[bytes]
    log: Path

    def call(self, method: str, path: str, body: str | None = None, token: str = TOKEN) -> tuple[int, str]:
        request = urllib.request.Request(
            f"http://{self.address}:{self.port}{path}",
            method=method,
            data=body.encode() if body else None,
            headers={"Authorization": f"Bearer {token}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def report(self) -> Report:
        status, text = self.call("GET", "/v1/report")
        assert status == 200, text
        return Report.model_validate_json(text)

    def put(self, target: Target) -> Report:
        status, text = self.call("PUT", "/v1/target", target.to_json())
        assert status == 200, text
        return Report.model_validate_json(text)

    def rank_pids(self) -> list[int]:
        """Processes of the pod's living ranks, by rank."""
        return [r.pid for r in self.report().ranks if r.alive]


@dataclass
class Gang:
    """All agents of one job."""

    config: JobConfig
    directory: Path
    server: S3Server
    block: int
    """Second byte of the pods' loopback addresses."""
    agents: dict[int, AgentProcess] = field(default_factory=dict)
    attempt: int = 0
    settings: Settings = field(default_factory=lambda: Settings(fence_seconds=20, keep=3))
    extra_environment: dict[str, str] = field(default_factory=dict)

    def start(self, slot: int) -> AgentProcess:
        """Start (or replace) the pod of a slot with an empty scratch."""
        if slot in self.agents:
            self.kill(slot)
        number = sum(1 for _ in self.directory.glob("pod-*"))
        address = f"127.{self.block}.{number // 250}.{number % 250 + 1}"
        home = self.directory / f"pod-{number}"
        home.mkdir(parents=True)
        job_file = home / "job.json"
        job_file.write_text(self.config.to_json())
        port, metrics_port = free_port(address), free_port(address)
        environment = {
            **os.environ, **self.server.environment, **self.extra_environment,
            "TRIREME_JOB_FILE": str(job_file), "TRIREME_SLOT": str(slot), "TRIREME_AGENT_TOKEN": TOKEN,
            "POD_IP": address, "POD_NAME": f"{self.config.job.name}-{slot}", "NODE_NAME": f"node-{slot}",
            "TRIREME_AGENT_PORT": str(port), "TRIREME_METRICS_PORT": str(metrics_port),
            "TRIREME_SCRATCH": str(home / "scratch"),
        }  # fmt: skip
        log = home / "agent.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "trireme_trainer.agent"],
                env=environment, stdout=output, stderr=subprocess.STDOUT, process_group=0, preexec_fn=die_with_this,
            )  # fmt: skip
        agent = AgentProcess(slot, address, port, metrics_port, process, log)
        self.agents[slot] = agent

        def up() -> bool:
            assert process.poll() is None, log.read_text()[-4000:]
            with contextlib.suppress(OSError):
                return agent.call("GET", "/healthz")[0] == 200
            return False

        wait_for(up, 60)
        return agent

    def start_all(self) -> None:
        for slot in range(self.config.slots):
            self.start(slot)

    def kill(self, slot: int) -> None:
        agent = self.agents.pop(slot)
        agent.process.kill()
        agent.process.wait()

    def close(self) -> None:
        for slot in list(self.agents):
            self.kill(slot)

    @property
    def hosts(self) -> list[Host]:
        return [Host(slot=s, address=a.address, agent_port=a.port) for s, a in sorted(self.agents.items())]

    def target(self, phase: Phase, **fields: Any) -> Target:
        return Target(
            job_uid=self.config.job.uid, attempt=self.attempt, phase=phase, hosts=self.hosts,
            settings=self.settings, **fields,
        )  # fmt: skip

    def put_all(self, target: Target) -> None:
        for agent in self.agents.values():
            agent.put(target)

    def reports(self) -> list[Report]:
        return [agent.report() for _, agent in sorted(self.agents.items())]

    def logs(self) -> str:
        return "\n".join(p.read_text(errors="replace")[-6000:] for p in sorted(self.directory.glob("pod-*/agent.log")))

    # -- the operator's part

    def hold(self) -> None:
        """Raise the attempt and wait until nothing of an older one is alive."""
        self.attempt += 1
        self.put_all(self.target(Phase.HOLD))
        wait_for(lambda: all(r.ranks_alive == 0 and r.attempt == self.attempt for r in self.reports()), 60)

    def prepare(self, **fields: Any) -> Report:
        """Have slot 0 prepare; its report once it is settled."""
        self.agents[0].put(self.target(Phase.PREPARE, **fields))
        self.agents[0].put(self.target(Phase.PREPARE, **fields))
        return wait_for(lambda: (r := self.agents[0].report()).state is AgentState.PREPARED and r, 150)

    def run(self, prepared: Report, **fields: Any) -> None:
        """Start the ranks at the proposal."""
        assert prepared.proposal is not None, (prepared.inputs_problem, self.logs())
        proposal = prepared.proposal
        self.put_all(self.target(Phase.RUN, dataset=proposal.dataset, resume_from=proposal.resume, **fields))

    def form(self, **fields: Any) -> Report:
        """hold, prepare, run."""
        self.hold()
        prepared = self.prepare(**fields)
        self.run(prepared)
        return prepared

    def wait_step(self, step: int, seconds: float = 120) -> Report:
        def reached() -> Report | None:
            reports = self.reports()
            assert all(r.state is not AgentState.FAILED for r in reports), (reports, self.logs())
            return reports[0] if reports[0].progress and reports[0].progress.step >= step else None

        return wait_for(reached, seconds)

    def wait_state(self, *states: AgentState, seconds: float = 120) -> list[Report]:
        def reached() -> list[Report] | None:
            reports = self.reports()
            return reports if all(r.state in states for r in reports) else None

        try:
            return wait_for(reached, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.reports()}\n{self.logs()}") from error

    def release(self) -> None:
        self.put_all(self.target(Phase.RELEASE))
        for agent in self.agents.values():
            assert agent.process.wait(20) == 0

    # -- the store, as files

    @property
    def job_directory(self) -> Path:
        job = self.config.job
        return self.server.bucket / "jobs" / job.namespace / job.name / job.uid

    def manifests(self) -> list[Path]:
        return sorted(self.job_directory.glob("a*/step-*/manifest.json"), key=lambda p: int(p.parent.name[5:]))


@contextlib.contextmanager
def s3_server(directory: Path) -> Iterator[S3Server]:
    server = S3Server(directory)
    try:
        yield server
    finally:
        server.stop()
