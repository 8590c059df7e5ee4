"""The trained model in Hugging Face layout: all weights, or the adapter, or both merged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from trireme_trainer.hf.base import load_tokenizer
from trireme_trainer.hf.config import HFConfig
from trireme_trainer.hf.models import load_model, peft_config, with_adapter

ADAPTER_DIRECTORY, CLASSES_NAME = "adapter", "classes.json"
MERGE_TOLERANCE = 1e-4
"""Largest difference of a logit, in float32, between base with adapter and merged model."""
PROBE_TOKENS = 32


class MergeFailed(RuntimeError):
    """The merged model does not compute what base and adapter do."""


def export(
    config: HFConfig[Any],
    base: Path,
    tokenizer: Path,
    weights: Mapping[str, torch.Tensor],
    directory: Path,
    alive: Callable[[], None],
) -> None:
    """Write config.json, safetensors and tokenizer files. An adapter lies at the top, or beside the merged model in
    adapter/. Raises MergeFailed.
    """
    dtype = torch.bfloat16 if config.spec.training.precision == "bf16" else torch.float32
    directory.mkdir(parents=True, exist_ok=True)
    adapter = peft_config(config.spec.method, config.head)
    model: Any = with_adapter(load_model(base, torch.float32, config.head), adapter)
    alive()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
    model.eval()
    if config.head.task_type == "SEQ_CLS":
        # Of several texts of different length, a head that answers once finds each one's last token by this.
        taught_with = load_tokenizer(tokenizer)
        padding = taught_with.pad_token_id
        model.config.get_text_config().pad_token_id = taught_with.eos_token_id if padding is None else padding
    if adapter is not None:
        place = directory / ADAPTER_DIRECTORY if config.spec.output.merge else directory
        # The folder of this node means nothing elsewhere.
        model.peft_config["default"].base_model_name_or_path = config.base.uri
        model.save_pretrained(place)
        (place / "README.md").unlink(missing_ok=True)
        if config.head.names:  # an adapter's own configuration has no place for them
            (place / CLASSES_NAME).write_text(json.dumps(config.head.names))
        alive()
    if adapter is not None and config.spec.output.merge:
        model = _merged(model)
        alive()
    if adapter is None or config.spec.output.merge:
        model.to(dtype).save_pretrained(directory)
        alive()
    for path in tokenizer.iterdir():
        shutil.copyfile(path, directory / path.name)


@torch.no_grad()
def _merged(model: Any) -> Any:
    """The base with the adapter merged into it, checked against both apart. Raises MergeFailed."""
    vocabulary = model.get_input_embeddings().num_embeddings
    probe = torch.arange(PROBE_TOKENS).remainder(vocabulary)[None] * 31 % vocabulary
    apart = model(probe, use_cache=False).logits
    merged = model.merge_and_unload(safe_merge=True)
    difference = float((merged(probe, use_cache=False).logits - apart).abs().max())
    if not difference <= MERGE_TOLERANCE:
        raise MergeFailed(f"a logit of the merged model differs by {difference:g}, more than {MERGE_TOLERANCE:g}")
    return merged
