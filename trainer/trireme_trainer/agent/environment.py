"""What an agent is told by its pod."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trireme.checkpoints import JobKeys
from trireme.protocol import JobConfig
from trireme.protocol.base import METRICS_PORT


@dataclass(frozen=True)
class AgentEnvironment:
    """The pod's environment, parsed."""

    config: JobConfig
    job_file: Path
    slot: int
    token: str
    pod_ip: str
    pod_name: str
    node_name: str
    port: int
    metrics_port: int
    scratch: Path

    @property
    def keys(self) -> JobKeys:
        """The job's keys in the object store."""
        job = self.config.job
        return JobKeys(self.config.store.uri, job.namespace, job.name, job.uid)

    @property
    def threads_per_rank(self) -> int:
        """Threads of torch's operators on the host: one where processors are the devices, else a share."""
        if self.config.plan["accelerator"] == "cpu":
            return 1
        return max(1, len(os.sched_getaffinity(0)) // self.config.ranks_per_slot)

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> AgentEnvironment:
        """Parse the environment. Raises KeyError or ValueError naming what is missing or wrong."""
        job_file = Path(environ["TRIREME_JOB_FILE"])
        config = JobConfig.model_validate_json(job_file.read_bytes())
        slot = int(environ["TRIREME_SLOT"])
        if not 0 <= slot < config.slots:
            raise ValueError(f"TRIREME_SLOT is {slot}, the job has {config.slots} slots")
        token = environ["TRIREME_AGENT_TOKEN"]
        if not token:
            raise ValueError("TRIREME_AGENT_TOKEN is empty")
        return cls(
            config=config,
            job_file=job_file,
            slot=slot,
            token=token,
            pod_ip=environ["POD_IP"],
            pod_name=environ.get("POD_NAME", f"{config.job.name}-{slot}"),
            node_name=environ.get("NODE_NAME", ""),
            port=int(environ.get("TRIREME_AGENT_PORT", "7070")),
            metrics_port=int(environ.get("TRIREME_METRICS_PORT", str(METRICS_PORT))),
            scratch=Path(environ.get("TRIREME_SCRATCH", "/scratch")),
        )
