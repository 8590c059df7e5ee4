"""Whether given weights are of a job's model: by the shape that lies beside them. Needs no torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from trireme_trainer.engines.interface import CheckpointFormatError, ModelShape

_FREE_FIELDS = ("initializer_range", "max_position_embeddings")
"""Fields of the shape that may differ: they hold no weight."""


def check_same_model(mine: Mapping[str, Any], stored: Any) -> None:
    """Raise CheckpointFormatError naming every field of `mine` that the stored shape has otherwise."""
    if not isinstance(stored, Mapping):
        raise CheckpointFormatError(f"the checkpoint names no model: {stored!r}")
    differing = [
        f"{name} {stored.get(name)!r}, here {value!r}" for name, value in mine.items() if stored.get(name) != value
    ]
    if differing:
        raise CheckpointFormatError(f"the checkpoint is of another model: {'; '.join(differing)}")


def check_weights_fit(mine: ModelShape, stored: Any) -> None:
    """Raise CheckpointFormatError unless weights of the stored shape fill this one."""
    fields = dataclasses.asdict(mine)
    check_same_model({name: value for name, value in fields.items() if name not in _FREE_FIELDS}, stored)


def check_hugging_face(config_json: bytes, where: str, shape: ModelShape) -> None:
    """Raise CheckpointFormatError unless a config.json is of a Llama of this shape; `where` is for the message."""
    try:
        document = json.loads(config_json)
        heads, hidden = document["num_attention_heads"], document["hidden_size"]
        rotary = document.get("rope_parameters") or {}
        scaling = document.get("rope_scaling") or rotary
        rope_type = scaling.get("rope_type") or scaling.get("type") or "default"  # "type" in older files
        head_dim = document.get("head_dim") or hidden // heads
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointFormatError(f"{where} is not a Llama config: {error!r}") from error
    if document.get("model_type") != "llama":
        raise CheckpointFormatError(f"{where}: model_type {document.get('model_type')!r} is not llama")
    if rope_type != "default":
        raise CheckpointFormatError(f"{where}: scaled rotary embeddings (rope_type {rope_type!r}) are not supported")
    fields = {name: document.get(name) for name in dataclasses.asdict(shape)}
    fields["num_key_value_heads"] = document.get("num_key_value_heads") or heads
    fields["rope_theta"] = document.get("rope_theta") or rotary.get("rope_theta")
    fields["tie_word_embeddings"] = bool(document.get("tie_word_embeddings"))
    fields["head_dim"] = shape.head_dim if head_dim == shape.attention_head_size else head_dim
    try:
        check_weights_fit(shape, fields)
    except CheckpointFormatError as error:
        raise CheckpointFormatError(f"{where}: {error}") from None
