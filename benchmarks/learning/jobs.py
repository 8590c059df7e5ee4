"""The jobs: the stages of examples/line/, their controls, and policies with a verifiable reward, one per seed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

LINE = Path("examples/line")
STORE = "s3://trireme/benchmarks"
REWARD = {"name": "returns", "regex": {"pattern": "^ ?Return"}}
"""1 where a docstring begins with the word, as a part of the library's do."""
Manifest = dict[str, Any]


def stage(file: str, name: str, seed: int, **spec: Any) -> Manifest:
    """A stage of the line under another name and seed, on one rank."""
    manifest: Manifest = yaml.safe_load((LINE / file).read_text())
    manifest["metadata"]["name"] = name
    own = manifest["spec"]
    own["checkpoint"] |= {"uri": STORE, "intervalSeconds": 600}
    own["training"] |= {"seed": seed}
    if "parallelism" not in own and own["workers"]["nodes"] > 1:
        own["workers"] |= {"nodes": 1, "devicesPerNode": 1}
    return {**manifest, "spec": {**own, **spec}}


def base() -> Manifest:
    """The model that all start from."""
    return stage("1-pretrain.yaml", "stdlib-base", 0)


def taught(seed: int) -> Manifest:
    """LoRA on signatures and docstrings; the first seed's is what the policies start from."""
    return stage("2-finetune.yaml", f"taught-{seed}", seed)


def control(seed: int) -> Manifest:
    """As many steps on the same functions' plain source."""
    manifest = taught(seed)
    manifest["metadata"]["name"] = f"control-{seed}"
    (source,) = manifest["spec"]["data"]["sources"]
    source["columns"] = {"text": "source"}
    manifest["spec"]["data"]["overlong"] = "truncate"
    return manifest


def preferring(seed: int) -> Manifest:
    """DPO."""
    return _of_taught(stage("3-align.yaml", f"preferring-{seed}", seed))


def rewarded(algorithm: str, seed: int, steps: int) -> Manifest:
    """GRPO or PPO with the verifiable reward."""
    manifest = _of_taught(stage("3-align.yaml", f"{algorithm}-{seed}", seed))
    spec = copy.deepcopy(manifest["spec"])
    del spec["dpo"]
    spec |= {
        "algorithm": algorithm,
        "rewards": [REWARD],
        "generation": {"maxNewTokens": 16, "samplesPerPrompt": 4},
    }
    for source in (*spec["data"]["sources"], *spec["data"]["validation"]["sources"]):
        source["columns"] = {"prompt": "signature"}
    spec["training"] |= {"steps": steps, "globalBatchSize": 16, "optimizer": {"learningRate": 0.001}}
    return {**manifest, "spec": spec}


def _of_taught(manifest: Manifest) -> Manifest:
    manifest["spec"]["policy"] = {"job": {"kind": "FineTuneJob", "name": "taught-0"}}
    return manifest
