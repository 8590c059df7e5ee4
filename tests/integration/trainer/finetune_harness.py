"""A base model, examples from the standard library, and gangs that fine-tune."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import torch
from gang_harness import BUCKET, S3Server
from transformers import LlamaConfig, LlamaForCausalLM

from trireme.protocol import JobConfig, JobIdentity, StoreConfig
from trireme.resources import job_kind_named
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
    for path, value in changes.items():
        place = spec
        *parents, last = path.split("__")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return spec


def make_finetune_job(server: S3Server, raw: Spec, name: str = "job") -> JobConfig:
    """What the pods are told, as the operator settles and plans it."""
    spec, _ = KIND.settle(KIND.parse(raw))
    return JobConfig(
        protocol="1.0",
        job=JobIdentity(kind=KIND.kind, namespace="default", name=name, uid=str(uuid.uuid4())),
        program=KIND.program,
        spec=spec.to_manifest(),
        plan=KIND.make_plan(spec).model_dump(mode="json", by_alias=True),
        slots=spec.workers.nodes,
        ranks_per_slot=spec.workers.devices_per_node,
        store=StoreConfig(uri=spec.checkpoint.uri, endpoint=server.endpoint, path_style=True),
    )
