"""Manifests of the smallest jobs of the other kinds that measure everything that their kind can measure."""

import json
from pathlib import Path
from typing import Any

from tiny_job import tiny_job

from stdlib_examples import write_comparisons, write_examples, write_prompts

Json = dict[str, Any]
LEARNED, HELD_OUT = ("argparse.py", "shutil.py"), ("textwrap.py", "string.py")


class Examples:
    """Files of examples, comparisons, prompts and text in one folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        for name, write in (
            ("examples", write_examples),
            ("comparisons", write_comparisons),
            ("prompts", write_prompts),
        ):
            write(folder / f"{name}.jsonl", *LEARNED)
            write(folder / f"{name}-held-out.jsonl", *HELD_OUT)
        lines = (json.dumps({"text": f"def number_{n}(): return {n}"}) + "\n" for n in range(40))
        (folder / "text.jsonl").write_text("".join(lines))

    def source(self, name: str) -> Json:
        """One of them, as a manifest has it."""
        return {"uri": str(self._folder / f"{name}.jsonl")}

    def data(self, name: str, length: int) -> Json:
        """One of them with its held-out part."""
        held_out = {"sources": [self.source(f"{name}-held-out")]}
        return {
            "sources": [self.source(name)],
            "validation": held_out,
            "sequenceLength": length,
            "overlong": "drop",
        }


def _job(kind: str, name: str, steps: int, spec: Json) -> Json:
    like = tiny_job(name, devices=1)["spec"]
    shared = {key: like[key] for key in ("workers", "checkpoint", "faultTolerance")}
    shared["checkpoint"] |= {"intervalSteps": max(2, steps // 3)}
    training = {
        "steps": steps,
        "globalBatchSize": 4,
        "precision": "fp32",
        "optimizer": {"learningRate": 0.001},
        "validationIntervalSteps": max(1, steps // 4),
    }
    spec = {**shared, **spec, "training": {**training, **spec.get("training", {})}}
    return {"apiVersion": "trireme.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def finetune(name: str, base: str, examples: Examples) -> Json:
    """Instructions by LoRA, with early stopping that never comes."""
    spec = {
        "base": {"job": {"name": base}},
        "task": "instruction",
        "method": {"lora": {"rank": 4}},
        "data": examples.data("examples", 384),
        "training": {"earlyStopping": {"patience": 1000}},
    }
    return _job("FineTuneJob", name, 24, spec)


def align(algorithm: str, base: str, examples: Examples) -> Json:
    """An RLHFJob of one algorithm, under the algorithm's name."""
    policy = {"job": {"kind": "PretrainJob", "name": base}}
    spec: Json = {"algorithm": algorithm, "policy": policy, "data": examples.data("comparisons", 384)}
    if algorithm in ("grpo", "ppo"):
        spec["data"] = examples.data("prompts", 160)
        spec["generation"] = {"maxNewTokens": 8}
        spec["rewards"] = [{"name": "call", "regex": {"pattern": "[(]"}}]
    if algorithm == "grpo":
        spec["generation"]["samplesPerPrompt"] = 2
        spec["grpo"] = {"iterations": 1, "beta": 0.05}
    if algorithm == "ppo":
        spec["ppo"] = {"epochs": 2, "ptx": {"sources": [examples.source("text")]}}
    return _job("RLHFJob", algorithm, 12, spec)
