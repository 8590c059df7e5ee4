"""What a careful user writes for `torchrun --max-restarts`: train, save to S3 by hand, go on from the newest save.

    torchrun ... --module benchmarks.recovery.torchrun_baseline JOB_JSON EVENTS INTERVAL_STEPS URI

Same model, layout and store as the Trireme job. Every rank uploads its own part, then all meet, then rank 0 moves the
pointer: a save that was cut short is never loaded. Training waits for the upload. EVENTS gets a JSON line for what
happens, for the benchmark to read.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

STARTED_AT = time.time()


class Store:
    """The rank's own part of the newest save."""

    def __init__(self, uri: str, rank: int) -> None:
        import boto3
        from botocore.config import Config

        self._bucket, _, self._prefix = uri.removeprefix("s3://").partition("/")
        self._rank = rank
        self._s3 = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))

    def save(self, step: int, state: dict[str, Any], engine: Any) -> None:
        """Upload, meet, and let rank 0 name this the newest."""
        import torch

        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        self._s3.upload_fileobj(buffer, self._bucket, f"{self._prefix}/step-{step}/rank-{self._rank}.pt")
        engine.barrier()
        if self._rank == 0:
            self._s3.put_object(Bucket=self._bucket, Key=f"{self._prefix}/latest", Body=str(step).encode())

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """(step, state) of the newest save, None before the first."""
        import torch

        try:
            body = self._s3.get_object(Bucket=self._bucket, Key=f"{self._prefix}/latest")["Body"].read()
        except self._s3.exceptions.NoSuchKey:
            return None
        buffer = io.BytesIO()
        step = int(body)
        self._s3.download_fileobj(self._bucket, f"{self._prefix}/step-{step}/rank-{self._rank}.pt", buffer)
        buffer.seek(0)
        return step, torch.load(buffer, weights_only=True)


def main() -> None:
    """Train until killed."""
    job_file, events, interval, uri = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    rank = int(os.environ["RANK"])
    output = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(event: str, step: int = 0, at: float | None = None) -> None:
        line = {"event": event, "rank": rank, "pid": os.getpid(), "step": step, "at": at or time.time()}
        os.write(output, json.dumps(line).encode() + b"\n")

    note("started", at=STARTED_AT)
    engine, config = build(job_file, rank)
    store = Store(uri, rank)
    adam = engine.optimizer.adam
    note("formed")
    step = 0
    if (saved := store.load()) is not None:
        step, state = saved
        engine.bare_model.load_state_dict(state["model"])
        engine.optimizer.adopt_model_parameters()
        adam.load_state_dict(state["adam"])
    engine.barrier()
    note("restored", step)

    from benchmarks.mfu.worker import random_batch

    batches = [random_batch(config, seed) for seed in range(4)]
    while True:
        engine.train_step(batches[step % len(batches)])
        step += 1
        if rank == 0:
            note("step", step)
        if step % interval == 0:
            store.save(step, {"model": engine.bare_model.state_dict(), "adam": adam.state_dict()}, engine)
            if rank == 0:
                note("saved", step)


def build(job_file: Path, rank: int) -> tuple[Any, Any]:
    """The model and optimizer of the Trireme job, without its agents."""
    from trireme.protocol import JobConfig
    from trireme_trainer.engines.interface import RankEnvironment, create_engine
    from trireme_trainer.pretrain.config import PretrainConfig

    config = PretrainConfig.parse(JobConfig.model_validate_json(job_file.read_bytes())).engine
    environment = RankEnvironment(
        rank,
        int(os.environ["WORLD_SIZE"]),
        int(os.environ["LOCAL_RANK"]),
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        "cpu",
    )
    engine = create_engine(config, environment)
    engine.setup()
    return engine, config


if __name__ == "__main__":
    main()
