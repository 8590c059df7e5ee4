"""One rank of an engine under test: runs the actions of a JSON plan and writes what it saw.

    python engine_rank.py <plan.json> <rank>
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from trireme_trainer.engines.interface import (
    EngineConfig,
    ModelShape,
    OptimizerConfig,
    ParallelLayout,
    RankEnvironment,
    ScheduleConfig,
    TokenBatch,
    create_engine,
)


def engine_config(plan: dict[str, Any]) -> EngineConfig:
    fields = dict(plan["config"])
    return EngineConfig(
        model=ModelShape(**fields.pop("model")),
        schedule=ScheduleConfig(**fields.pop("schedule")),
        layout=ParallelLayout(**plan["layout"]),
        optimizer=OptimizerConfig(**fields.pop("optimizer")),
        **fields,
    )


def batch_of(config: EngineConfig, step: int, data_rank: int, poison_step: int | None = None) -> TokenBatch:
    """The slice of step's global batch: drawn from the step alone, from a skewed vocabulary that can be learned."""
    generator = np.random.default_rng(1000 + step)
    draws = generator.zipf(1.3, size=(config.global_batch_size, config.sequence_length + 1))
    tokens = (draws % config.model.vocab_size).astype(np.int64)
    mask = (generator.random((config.global_batch_size, config.sequence_length)) > 0.1).astype(np.float32)
    if step == poison_step:
        mask[:] = np.nan
    per_rank = config.global_batch_size // config.layout.data
    rows = slice(data_rank * per_rank, (data_rank + 1) * per_rank)
    return TokenBatch(tokens[rows, :-1], tokens[rows, 1:], mask[rows])


def run(plan: dict[str, Any], rank: int) -> dict[str, Any]:
    config = engine_config(plan)
    environment = RankEnvironment(
        rank=rank,
        world_size=config.layout.world_size,
        local_rank=rank,
        master_address="127.0.0.1",
        master_port=plan["port"],
        collective_timeout_seconds=120,
    )
    engine = create_engine(config, environment)
    engine.setup()
    seen: dict[str, Any] = {"steps": [], "parameters": engine.parameters, "agreed": engine.agree(rank)}
    for action in plan["actions"]:
        name = action["do"]
        if name == "train":
            for _ in range(action["steps"]):
                batch = batch_of(config, engine.step, engine.data_parallel_rank, action.get("poison_step"))
                result = engine.train_step(batch)
                seen["steps"].append(
                    {
                        "step": result.step,
                        "loss": result.loss,
                        "grad_norm": result.grad_norm,
                        "learning_rate": result.learning_rate,
                        "adam_step": engine.adam_step,  # type: ignore[attr-defined]
                        "skipped": result.skipped,
                    }
                )
        elif name == "save":
            directory = Path(action["directory"]) / f"node-{rank // 2}"
            saved = engine.save_local(directory, {"sampler": {"position": engine.step * 8}})
            seen["saved"] = {"directory": str(directory), "files": list(saved.files), "bytes": saved.bytes_written}
        elif name == "load":
            loaded = engine.load_local(Path(action["directory"]))
            seen["loaded"] = {"step": loaded.step, "extra": dict(loaded.extra_state)}
        elif name == "evaluate":
            batches = [batch_of(config, 5000 + i, engine.data_parallel_rank) for i in range(2)]
            result_ = engine.evaluate(batches)
            seen["evaluation"] = {"loss": result_.loss, "tokens": result_.tokens}
        elif name == "export":
            exported = engine.export_hugging_face(Path(action["directory"]))
            seen["exported"] = {"files": list(exported.files), "parameters": exported.parameters}
        else:
            raise ValueError(name)
    engine.close()
    return seen


if __name__ == "__main__":
    plan_path = Path(sys.argv[1])
    rank_ = int(sys.argv[2])
    seen_ = run(json.loads(plan_path.read_text()), rank_)
    plan_path.with_name(f"{plan_path.stem}.seen.{rank_}.json").write_text(json.dumps(seen_))
