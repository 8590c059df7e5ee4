"""Directories of tiny models and adapters, as files: nothing here computes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from trireme.protocol.serving import AdapterRoom, ServiceIdentity, ServingConfig

HIDDEN, RANK = 8, 4
MODULE = "model.layers.0.self_attn.q_proj"


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def model(directory: Path, *, architecture: str = "LlamaForCausalLM") -> Path:
    """config.json, a tokenizer and one matrix."""
    write_json(directory / "config.json", {"architectures": [architecture], "hidden_size": HIDDEN})
    write_json(directory / "tokenizer.json", {"version": "1.0"})
    write_json(directory / "tokenizer_config.json", {"chat_template": "{{ messages }}"})
    save_file({f"{MODULE}.weight": np.zeros((HIDDEN, HIDDEN), np.float32)}, directory / "model.safetensors")
    return directory


def adapter(directory: Path, base: str, *, hidden: int = HIDDEN, **config: Any) -> Path:
    """adapter_config.json and one low-rank pair."""
    write_json(
        directory / "adapter_config.json",
        {"peft_type": "LORA", "r": RANK, "base_model_name_or_path": base, **config},
    )
    name = f"base_model.model.{MODULE}.lora"
    down, up = np.zeros((RANK, hidden), np.float32), np.ones((hidden, RANK), np.float32)
    save_file({f"{name}_A.weight": down, f"{name}_B.weight": up}, directory / "adapter_model.safetensors")
    return directory


def config(uri: str, **changes: Any) -> ServingConfig:
    """What a replica is told."""
    return ServingConfig.model_validate(
        {
            "service": ServiceIdentity(namespace="default", name="llama", uid="u1"),
            "revision": "r1",
            "model": {"uri": uri},
            "served_name": "llama",
            "task": "completion",
            "max_concurrency": 4,
            "adapter_room": AdapterRoom(count=2, rank=8),
            "port": 8000,
            "start_deadline_seconds": 60,
            "drain_seconds": 5,
            **changes,
        }
    )
