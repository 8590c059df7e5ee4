"""Ranks of engines under test: imports the engine once, then forks the ranks of every plan named on standard input.

A rank runs the actions of its JSON plan and writes what it saw. One line of exit codes answers each plan.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trireme_trainer.engines.interface import (
    MAX_VOTE,
    EngineConfig,
    ModelShape,
    OptimizerConfig,
    ParallelLayout,
    RankEnvironment,
    ScheduleConfig,
    TokenBatch,
    create_engine,
    preload_engine,
)


def build_config(plan: dict[str, Any]) -> EngineConfig:
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


def whole_logits(engine: Any, tokens: np.ndarray[Any, Any]) -> list[Any] | None:
    """Logits `[batch, seq, vocab]` of a model on a gang with data 1, on the ranks of its last stage."""
    import torch
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.pipeline_parallel import get_forward_backward_func

    ids = torch.as_tensor(tokens)
    positions = torch.arange(ids.shape[1]).expand_as(ids)

    def forward(_iterator: Any, model: Any) -> Any:
        output = model(ids, positions, None)

        def keep(logits: Any, non_loss_data: bool = False) -> Any:
            return tensor_parallel.gather_from_tensor_model_parallel_region(logits.float())

        return output, keep

    with torch.no_grad():
        kept = get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iter([]),
            model=[engine.model],
            num_microbatches=1,
            seq_length=ids.shape[1],
            micro_batch_size=ids.shape[0],
            forward_only=True,
            collect_non_loss_data=True,
        )
    return kept[0].tolist() if parallel_state.is_pipeline_last_stage() else None


def run(plan: dict[str, Any], rank: int) -> dict[str, Any]:
    config = build_config(plan)
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
                # The last rank alone has a wish, another one with each step.
                vote = engine.step % (MAX_VOTE + 1) if rank == environment.world_size - 1 else 0
                result = engine.train_step(batch, partial(int, vote))
                seen["steps"].append(
                    {
                        "step": result.step,
                        "loss": result.loss,
                        "grad_norm": result.grad_norm,
                        "learning_rate": result.learning_rate,
                        "adam_step": engine.adam_step,
                        "skipped": result.skipped,
                        "agreed": result.agreed,
                    }
                )
        elif name == "save":
            directory = Path(action["directory"]) / f"node-{rank // 2}"
            saved = engine.save_local(directory, {"sampler": {"position": engine.step * 8}})
            seen["saved"] = {"directory": str(directory), "files": list(saved.files), "bytes": saved.bytes_written}
        elif name == "load":
            loaded = engine.load_local(Path(action["directory"]))
            seen["loaded"] = {"step": loaded.step, "extra": dict(loaded.extra_state)}
        elif name == "start":
            engine.start_from(Path(action["directory"]))
        elif name == "evaluate":
            batches = [batch_of(config, 5000 + i, engine.data_parallel_rank) for i in range(2)]
            graphs: list[bool] = []
            hook = engine.bare_model.register_forward_hook(
                lambda _module, _inputs, output, graphs=graphs: graphs.append(output.requires_grad)
            )
            result_ = engine.evaluate(batches)
            hook.remove()
            seen["evaluation"] = {
                "loss": result_.loss, "tokens": result_.tokens, "step": engine.step, "graphs": graphs
            }  # fmt: skip
        elif name == "logits":
            seen["logits"] = whole_logits(engine, batch_of(config, 5000, 0).tokens[:2])
        elif name == "export":
            exported = engine.export_hugging_face(Path(action["directory"]))
            seen["exported"] = {"files": list(exported.files), "parameters": exported.parameters}
        else:
            raise ValueError(name)
    engine.close()
    return seen


def run_rank(plan_path: Path, rank: int) -> int:
    """In a forked child: the rank's exit code; its output goes to a log beside the plan."""
    with plan_path.with_name(f"{plan_path.stem}.rank-{rank}.log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        seen = run(json.loads(plan_path.read_text()), rank)
    except Exception:
        traceback.print_exc()
        return 1
    plan_path.with_name(f"{plan_path.stem}.seen.{rank}.json").write_text(json.dumps(seen))
    return 0


def fork_rank(plan_path: Path, rank: int) -> int:
    process = os.fork()
    if process == 0:
        code = run_rank(plan_path, rank)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return process


def reap(ranks: list[int]) -> list[int]:
    """Exit codes by rank; the first failure ends the others, which would only wait for it."""
    codes: dict[int, int] = {}
    while len(codes) < len(ranks):
        process, status = os.wait()
        codes[process] = os.waitstatus_to_exitcode(status)
        if codes[process] != 0:
            for other in set(ranks) - set(codes):
                os.kill(other, signal.SIGKILL)
    return [codes[process] for process in ranks]


if __name__ == "__main__":
    preload_engine("megatron", "cpu")
    for line in sys.stdin:
        path = Path(line.strip())
        world_size = math.prod(json.loads(path.read_text())["layout"].values())
        print(json.dumps(reap([fork_rank(path, rank) for rank in range(world_size)])), flush=True)
