"""Whether a model that is trained has room on its devices, by its configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from transformers import AutoConfig

from trireme.planning import DeviceMemory
from trireme.planning.replica_memory import Replica, replica_memory, too_large
from trireme.planning.shape import LlamaShape
from trireme.protocol import ModelSizes
from trireme_trainer.data.errors import DataError
from trireme_trainer.hf.config import HFConfig


class DoesNotFit(DataError):
    """A device's memory is too small for its share of the job."""

    reason = "DoesNotFit"
    retryable = False


class SequenceTooLong(DataError):
    """The rows of the job have more tokens than the model has positions."""

    reason = "SequenceTooLong"
    retryable = False


def model_shape(config: Any) -> LlamaShape | None:
    """The shape of a model of any architecture as that of a Llama; None where the configuration has other fields."""
    text = config.get_text_config()
    try:
        return LlamaShape(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
            num_hidden_layers=text.num_hidden_layers,
            num_attention_heads=text.num_attention_heads,
            num_key_value_heads=getattr(text, "num_key_value_heads", None),
            head_dim=getattr(text, "head_dim", None),
        )
    except (AttributeError, ValidationError):
        return None


def check_context(directory: Path, sequence_length: int, virtual_tokens: int = 0) -> None:
    """Raises SequenceTooLong where the configuration states fewer positions than a row may have."""
    text = AutoConfig.from_pretrained(directory, trust_remote_code=False).get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    if isinstance(longest, int) and 0 < longest < sequence_length + virtual_tokens:
        before = f" and {virtual_tokens} virtual tokens stand before an example" if virtual_tokens else ""
        raise SequenceTooLong(
            f"data.sequenceLength is {sequence_length}{before}, the base's max_position_embeddings is {longest}"
        )


def quantised_parameters(model: nn.Module, kept: str) -> int:
    """Weights that are held in 4 bits where a base is quantised: of linear layers but the one named `kept`."""
    return sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name.rpartition(".")[2] != kept and not module.weight.requires_grad
    )


def require_room(config: HFConfig[Any], directory: Path, sizes: ModelSizes) -> DeviceMemory | None:
    """What the fullest device needs; None where the configuration does not tell. Raises DoesNotFit."""
    found = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    shape = model_shape(found)
    if shape is None:
        return None
    spec = config.spec
    quantised = 0
    if spec.method.type == "qlora":
        with torch.device("meta"):
            model = config.head.auto_class.from_config(found, trust_remote_code=False)
        quantised = quantised_parameters(model.requires_grad_(False), "lm_head")
    replica = Replica(
        parameters=sizes.total,
        trainable=sizes.trainable,
        quantised=quantised,
        shape=shape,
        sequence_length=config.sequence_length,
        precision=spec.training.precision,
        recompute=spec.training.recompute,
        adapter=config.adapter,
    )
    memory = replica_memory(replica, config.plan)
    problem = too_large(replica, config.plan, memory)
    if problem is not None:
        raise DoesNotFit(problem)
    return memory
