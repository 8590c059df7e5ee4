"""One block: a fresh run of a job or of the plain script, its steady steps, and the table over all blocks."""

from __future__ import annotations

import ast
import inspect
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from benchmarks.common.local import Bench, BenchmarkFailed, wait_for
from benchmarks.common.page import median_and_range
from benchmarks.overhead.blocks import RUN_TIMEOUT_SECONDS, steady
from transformers import LlamaConfig, LlamaForCausalLM

from trireme.resources.status import JobState
from trireme_trainer.data.order import SampleOrder
from trireme_trainer.data.tokenizer import train_tokenizer

STDLIB = Path(inspect.__file__).parent
MODULES = ("argparse.py", "tarfile.py", "zipfile.py", "inspect.py", "pathlib.py", "subprocess.py", "typing.py")
METHODS = ("lora", "full")
PLAIN, JOB = "script", "job"
RANKS, BATCH, MICRO, RANK, SEED, LEARNING_RATE, WARMUP = 2, 8, 4, 8, 0, 1e-3, 0.03
SHAPE: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Block:
    """The steady steps of one run."""

    contender: str
    method: str
    step_seconds: list[float]
    """From one completed step to the next on rank 0, whatever lies between."""
    tokens: int
    """Of those steps, padding not counted."""
    round: int
    losses: list[float] = field(default_factory=list)
    """Of all steps."""

    @property
    def tokens_per_second(self) -> float:
        """Over the whole block, its slowest steps included."""
        return self.tokens / sum(self.step_seconds)


def make_inputs(directory: Path) -> tuple[Path, Path, int]:
    """(base model, examples, how many): from signatures of the standard library to their docstrings."""
    base, examples = directory / "base", directory / "examples.jsonl"
    train_tokenizer(((STDLIB / name).read_text() for name in MODULES), SHAPE["vocab_size"], 1024, base)
    torch.manual_seed(SEED)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(base)
    records = []
    for node in (n for name in MODULES for n in ast.walk(ast.parse((STDLIB / name).read_text()))):
        doc = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
        if doc and isinstance(node, ast.FunctionDef) and len(doc) < 800:
            signature = f"def {node.name}({ast.unparse(node.args)}):"
            records.append({"instruction": "Describe this function.", "input": signature, "output": doc})
    examples.write_text("".join(json.dumps(record) + "\n" for record in records))
    return base, examples, len(records)


@dataclass
class BlockRunner:
    """Runs blocks of so many steps on one cluster."""

    bench: Bench
    warmup_steps: int
    steps: int

    def __post_init__(self) -> None:
        self._base, self._examples, self._count = make_inputs(self.bench.directory)
        self._tokens: dict[int, int] = {}
        """Up to each step, as the job counted them: both contenders train the same ones."""

    @property
    def total(self) -> int:
        """Steps of a block."""
        return self.warmup_steps + self.steps

    def round(self, number: int) -> Iterator[Block]:
        """A job and the script of each method; every other round the other way."""
        for method in METHODS:
            for contender in (JOB, PLAIN) if number % 2 == 0 or not self._tokens else (PLAIN, JOB):
                run = self._job if contender == JOB else self._plain
                yield run(method, number)

    def _job(self, method: str, number: int) -> Block:
        job = self.bench.start(self._manifest(f"{method}-{number}", method))
        status = job.wait_state(JobState.SUCCEEDED, RUN_TIMEOUT_SECONDS)
        if status.restarts.total:
            raise BenchmarkFailed(f"{job.name}: {status.restarts.total} restarts: {status.failure}")
        total = self.total
        # The last records reach the store a moment after the job's end.
        records = wait_for(f"{total} steps in the store", 60, lambda: h if len(h := job.history()) == total else None)
        job.delete()
        self._tokens = {record.step: record.tokens for record in records}
        seconds = steady([record.completed_at.timestamp() for record in records], self.warmup_steps)
        return Block(JOB, method, seconds, self._timed_tokens(), number, [record.loss for record in records])

    def _plain(self, method: str, number: int) -> Block:
        given, out = self.bench.directory / "settings.json", self.bench.directory / "plain.json"
        given.write_text(json.dumps(self._settings(method)))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
        command += ["-m", "benchmarks.finetune.plain", str(given), str(out)]
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        done = subprocess.run(command, env=os.environ | threads, timeout=RUN_TIMEOUT_SECONDS)
        if done.returncode:
            raise BenchmarkFailed(f"the script ended with {done.returncode}")
        steps = json.loads(out.read_text())
        seconds = steady([step["at"] for step in steps], self.warmup_steps)
        return Block(PLAIN, method, seconds, self._timed_tokens(), number, [step["loss"] for step in steps])

    def _timed_tokens(self) -> int:
        return self._tokens[self.total] - self._tokens[self.warmup_steps]

    def _settings(self, method: str) -> dict[str, Any]:
        order = SampleOrder([self._count], [1.0], SEED, BATCH)
        return {
            "base": str(self._base),
            "examples": str(self._examples),
            "order": [sample.index for step in range(self.total) for sample in order.samples(step)],
            "method": method,
            "rank": RANK,
            "learningRate": LEARNING_RATE,
            "warmupSteps": round(WARMUP * self.total),
            "steps": self.total,
            "microBatchSize": MICRO,
            "accumulationSteps": BATCH // MICRO // RANKS,
            "seed": SEED,
        }

    def _manifest(self, name: str, method: str) -> dict[str, Any]:
        spec = {
            "base": {"uri": str(self._base)},
            "task": "instruction",
            "method": {"type": method, **({"lora": {"rank": RANK}} if method == "lora" else {})},
            "data": {"sources": [{"uri": str(self._examples)}], "sequenceLength": 1024},
            "training": {
                "globalBatchSize": BATCH,
                "microBatchSize": MICRO,
                "steps": self.total,
                "precision": "fp32",
                "zeroStage": 0,
                "optimizer": {"learningRate": LEARNING_RATE},
                "schedule": {"kind": "cosine", "warmupRatio": WARMUP},
                "seed": SEED,
            },
            "workers": {
                "nodes": 1,
                "devicesPerNode": RANKS,
                "accelerator": {"kind": "cpu"},
            },
            "checkpoint": {
                "uri": "s3://trireme/benchmarks",
                "intervalSeconds": 0,
                "pathStyle": True,
                "credentials": {"secretRef": {"name": "trireme-store"}},
            },
        }
        return {"apiVersion": "trireme.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": spec}


def ratios(blocks: Sequence[Block], method: str) -> list[float]:
    """Tokens/s of the job's blocks over the script's of the same round."""
    plain = {b.round: b.tokens_per_second for b in blocks if (b.contender, b.method) == (PLAIN, method)}
    mine = [b for b in blocks if (b.contender, b.method) == (JOB, method)]
    return [b.tokens_per_second / plain[b.round] for b in mine if b.round in plain]


def largest_difference(blocks: Sequence[Block], method: str) -> float:
    """Of a step's loss between any block of the job and any of the script."""
    jobs, plain = ([b for b in blocks if (b.contender, b.method) == (name, method)] for name in (JOB, PLAIN))
    return max(abs(x - y) for a in jobs for b in plain for x, y in zip(a.losses, b.losses, strict=True))


def table(blocks: Sequence[Block]) -> str:
    """Markdown: a row per method and contender, then every block in the order in which it ran."""
    lines = [
        "| method | contender | blocks | tokens/s, median (range) | step, median | of the script | losses apart |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for method in METHODS:
        for contender in (PLAIN, JOB):
            mine = [b for b in blocks if (b.contender, b.method) == (contender, method)]
            if not mine:
                continue
            middle, low, high = median_and_range([b.tokens_per_second for b in mine])
            step = statistics.median(s for b in mine for s in b.step_seconds)
            share, difference = "", ""
            if contender == JOB:
                of_script = median_and_range(ratios(blocks, method))
                share = f"{of_script[0]:.3f} ({of_script[1]:.3f} to {of_script[2]:.3f})"
                difference = f"{largest_difference(blocks, method):.1e}"
            lines.append(
                f"| {method} | {contender} | {len(mine)} | {middle:,.0f} ({low:,.0f} to {high:,.0f}) | {step:.3f} s "
                f"| {share} | {difference} |"
            )
    lines += [
        "",
        "| block | method | contender | tokens/s | step, median | slowest step |",
        "|---:|---|---|---:|---:|---:|",
    ]
    for number, b in enumerate(blocks, start=1):
        lines.append(
            f"| {number} | {b.method} | {b.contender} | {b.tokens_per_second:,.0f} "
            f"| {statistics.median(b.step_seconds):.3f} s | {max(b.step_seconds):.3f} s |"
        )
    return "\n".join(lines)
