"""One rank of the loop that one writes by hand over Megatron-core: no agent, no operator, no reports, no checkpoints.

    RANK=0 WORLD_SIZE=4 MASTER_ADDR=127.0.0.1 MASTER_PORT=... python -m benchmarks.overhead.bare_loop JOB_JSON STEPS OUT

The job's own configuration says what to build, so that both sides compute the same. Rank 0 writes the Unix time after
every step to OUT.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from benchmarks.mfu.worker import bare_loop, random_batch

from trireme.protocol import JobConfig
from trireme_trainer.engines.interface import RankEnvironment, preload_engine
from trireme_trainer.pretrain.config import PretrainConfig


def main() -> None:
    """Train some steps on random tokens."""
    job_file, steps, output = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    config = PretrainConfig.parse(JobConfig.model_validate_json(job_file.read_bytes())).engine
    rank = int(os.environ["RANK"])
    preload_engine(config.name, "cpu")
    from trireme_trainer.engines.megatron.engine import MegatronEngine

    environment = RankEnvironment(
        rank, int(os.environ["WORLD_SIZE"]), 0, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), "cpu"
    )
    engine = MegatronEngine(config, environment)
    engine.setup()
    step = bare_loop(engine, config, [random_batch(config, seed) for seed in range(4)])
    completed_at = []
    for number in range(steps):
        step(number)
        completed_at.append(time.time())
    if rank == 0:
        output.write_text(json.dumps(completed_at))
    engine.close()


if __name__ == "__main__":
    main()
