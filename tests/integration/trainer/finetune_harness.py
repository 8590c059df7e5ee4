"""A base model, examples from the standard library, and gangs that fine-tune."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

import torch
from gang_harness import BUCKET, Gang, S3Server
from transformers import LlamaConfig, LlamaForCausalLM

from trireme.protocol import AgentState, JobConfig, JobIdentity, StoreConfig
from trireme.resources import job_kind_named
from trireme.resources.kinds import JobKind
from trireme_trainer.data.tokenizer import train_tokenizer

KIND = job_kind_named("FineTuneJob")
STDLIB = Path(json.__file__).parent.parent
Spec = dict[str, Any]


def make_base(directory: Path, seed: int = 0) -> Path:
    """A tiny Llama with a tokenizer of its own, in Hugging Face layout."""
    texts = (p.read_text(errors="replace") for p in sorted((STDLIB / "json").glob("*.py")))
    train_tokenizer(texts, 512, 256, directory)
    torch.manual_seed(seed)
    shape = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    LlamaForCausalLM(shape).save_pretrained(directory)
    return directory


def make_finetune_spec(base: Path, examples: Path, **changes: Any) -> Spec:
    """A job of a few seconds; `changes` are paths in the spec with __ between the names."""
    spec: Spec = {
        "base": {"uri": str(base)},
        "task": "instruction",
        "data": {"sources": [{"uri": str(examples)}], "sequenceLength": 512, "overlong": "drop"},
        "training": {
            "globalBatchSize": 4,
            "steps": 100,
            "precision": "fp32",
            "optimizer": {"learningRate": 0.01},
            "validationIntervalSteps": 1000,
        },
        "workers": {"nodes": 1, "devicesPerNode": 1, "accelerator": {"kind": "cpu"}},
        "checkpoint": {"uri": f"s3://{BUCKET}/jobs", "intervalSteps": 5},
    }
    return change(spec, **changes)


def change(spec: Spec, **changes: Any) -> Spec:
    """The spec with values set at paths with __ between the names."""
    for path, value in changes.items():
        place = spec
        *parents, last = path.split("__")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return spec


def make_finetune_job(server: S3Server, raw: Spec, name: str = "job") -> JobConfig:
    """What the pods of a fine-tuning job are told."""
    return make_kind_job(KIND, server, raw, name)


def make_kind_job(kind: JobKind[Any], server: S3Server, raw: Spec, name: str = "job") -> JobConfig:
    """What the pods are told, as the operator settles and plans it."""
    spec, _ = kind.settle(kind.parse(raw))
    return JobConfig(
        protocol="1.0",
        job=JobIdentity(kind=kind.kind, namespace="default", name=name, uid=str(uuid.uuid4())),
        program=kind.program,
        spec=spec.to_manifest(),
        plan=kind.make_plan(spec).model_dump(mode="json", by_alias=True),
        slots=spec.workers.nodes,
        ranks_per_slot=spec.workers.devices_per_node,
        store=StoreConfig(uri=spec.checkpoint.uri, endpoint=server.endpoint, path_style=True),
    )


def losses(gang: Gang) -> dict[int, float]:
    """The loss of every step, the newest attempt's where two computed it."""
    return _logged(gang, "loss")


def gradient_norms(gang: Gang) -> dict[int, float]:
    """The same of the gradient's norm, which also tells runs apart whose loss is 0 by construction."""
    return _logged(gang, "grad_norm")


def _logged(gang: Gang, name: str) -> dict[int, float]:
    found = {}
    for log in sorted((gang.job_directory / "logs").glob("a*/rank-0.log")):
        for step, value in re.findall(rf"step (\d+)/\d+ .*?\b{name} (\S+)", log.read_text()):
            found[int(step)] = float(value)
    return found


def finish(gang: Gang) -> Any:
    """(slot 0's report when prepared, its report when all is done)."""
    gang.start_all()
    first = gang.form()
    reports = gang.wait_state(AgentState.SUCCEEDED)
    gang.release()
    return first, reports[0]
