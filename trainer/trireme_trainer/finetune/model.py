"""The base model with the method's adapter, and its sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from trireme.protocol import ModelSizes
from trireme.resources.finetune import Method
from trireme_trainer.data.errors import DataError


class BaseUnusable(DataError):
    """The base is no model that can be taught."""

    reason = "BaseUnusable"
    retryable = False


class MethodUnusable(DataError):
    """The method cannot be used on this base: no module has such a name, a field that the library does not know."""

    reason = "MethodUnusable"
    retryable = False


def peft_config(method: Method) -> peft.PeftConfig | None:
    """The adapter of a method; None where all weights are trained. Raises MethodUnusable."""
    common = {"task_type": "CAUSAL_LM"}
    match method.type:
        case "full":
            return None
        case "lora":
            lora = method.lora
            return peft.LoraConfig(
                **common,
                r=lora.rank,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=lora.target_modules or "all-linear",
                modules_to_save=lora.modules_to_save or None,
            )
        case "prefix":
            return peft.PrefixTuningConfig(**common, num_virtual_tokens=method.virtual_tokens)
        case "promptTuning":
            return peft.PromptTuningConfig(**common, num_virtual_tokens=method.virtual_tokens)
        case "pTuning":
            return peft.PromptEncoderConfig(**common, num_virtual_tokens=method.virtual_tokens)
    try:
        return peft.get_peft_config({**common, **(method.peft or {})})
    except (KeyError, TypeError, ValueError) as error:
        raise MethodUnusable(f"spec.method.peft: {type(error).__name__}: {error}") from error


def load_base(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The base model with its weights. Raises BaseUnusable."""
    try:
        return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BaseUnusable(f"{directory.name}: {error}") from error


def with_adapter(model: PreTrainedModel, config: peft.PeftConfig | None, **how: Any) -> Any:
    """The model with an adapter. Raises MethodUnusable."""
    if config is None:
        return model
    try:
        return peft.get_peft_model(model, config, **how)
    except (ValueError, KeyError, AttributeError) as error:
        raise MethodUnusable(f"spec.method: {error}") from error


def sizes(directory: Path, method: Method) -> ModelSizes:
    """Parameters of the model and of what is trained, counted without reading a weight.

    Raises BaseUnusable, MethodUnusable.
    """
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BaseUnusable(f"the base is no causal language model that can be taught: {error}") from error
    with torch.device("meta"):
        model = with_adapter(model, peft_config(method))
    counted = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return ModelSizes(total=sum(n for n, _ in counted), trainable=sum(n for n, trained in counted if trained))
