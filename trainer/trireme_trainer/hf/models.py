"""The base model with the method's adapter, and its sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import peft
import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from trireme.protocol import ModelSizes
from trireme.resources.tuning import Method
from trireme_trainer.data.errors import DataError


class BaseUnusable(DataError):
    """The base is no model that can be trained."""

    reason = "BaseUnusable"
    retryable = False


class MethodUnusable(DataError):
    """The method cannot be used on this base: no module has such a name, a field that the library does not know."""

    reason = "MethodUnusable"
    retryable = False


@dataclass(frozen=True)
class Head:
    """What stands on a model's body, in peft's words, and how many numbers it answers with where that is chosen."""

    task_type: Literal["CAUSAL_LM", "SEQ_CLS"]
    labels: int | None = None
    names: tuple[str, ...] = ()
    """Of the classes that the numbers stand for."""

    @property
    def auto_class(self) -> Any:
        """The library's class that finds the architecture."""
        return AutoModelForCausalLM if self.task_type == "CAUSAL_LM" else AutoModelForSequenceClassification

    @property
    def config(self) -> dict[str, Any]:
        """Fields of the model's configuration."""
        if self.names:
            # num_labels follows from them.
            numbers = {name: number for number, name in enumerate(self.names)}
            return {"id2label": dict(enumerate(self.names)), "label2id": numbers}
        return {} if self.labels is None else {"num_labels": self.labels}


CAUSAL = Head("CAUSAL_LM")
SCORE = Head("SEQ_CLS", labels=1)
"""Of a reward model (Ouyang et al. 2022): one number for a whole sequence."""


def peft_config(method: Method, head: Head = CAUSAL) -> peft.PeftConfig | None:
    """The adapter of a method; None where all weights are trained. Raises MethodUnusable."""
    common = {"task_type": head.task_type}
    match method.type:
        case "full":
            return None
        case "lora" | "qlora":
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


def load_model(
    directory: Path, dtype: torch.dtype, head: Head = CAUSAL, *, quantised_on: torch.device | None = None
) -> PreTrainedModel:
    """A model with its weights; a head that it has not is made from torch's generator.

    `quantised_on`: hold the weights of its linear layers in 4 bits on that device. Raises BaseUnusable.
    """
    how: dict[str, Any] = dict(head.config)
    if quantised_on is not None:
        how |= {"quantization_config": four_bits(dtype), "device_map": {"": quantised_on}}
    check_safetensors(directory)
    try:
        return head.auto_class.from_pretrained(
            directory, dtype=dtype, trust_remote_code=False, use_safetensors=True, **how
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BaseUnusable(f"{directory.name}: {error}") from error


def four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    """4-bit NormalFloat with doubly quantised constants, computing in `dtype`. Dettmers et al. 2023, section 3."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def check_safetensors(directory: Path) -> None:
    """Raises BaseUnusable with the name of the first weight file whose header does not fit its size."""
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise BaseUnusable(f"{path.name} is corrupt: {error}") from error


def check_packing(directory: Path, adapter: peft.PeftConfig | None) -> None:
    """Raises BaseUnusable or MethodUnusable where the examples of one row could not be kept apart."""
    if adapter is not None and adapter.is_prompt_learning:
        raise MethodUnusable(
            f"data.packing: the virtual tokens of {adapter.peft_type.value} stand before a row, and not before each "
            "example in it"
        )
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    architecture = AutoModelForCausalLM._model_mapping.get(type(config), None)
    # Such models take their mask from the library, which finds the examples' borders in the positions.
    if not getattr(architecture, "_supports_attention_backend", False):
        raise BaseUnusable(
            f"data.packing: {config.model_type} does not take attention masks by position, so that examples in one row "
            "would see each other"
        )


def with_adapter(model: PreTrainedModel, config: peft.PeftConfig | None, **how: Any) -> Any:
    """The model with an adapter. Raises MethodUnusable."""
    if config is None:
        return model
    try:
        return peft.get_peft_model(model, config, **how)
    except (ValueError, KeyError, AttributeError) as error:
        raise MethodUnusable(f"spec.method: {error}") from error


def sizes(directory: Path, method: Method, head: Head = CAUSAL) -> ModelSizes:
    """Parameters of the model and of what is trained, counted without reading a weight.

    Raises BaseUnusable, MethodUnusable.
    """
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False, **head.config)
        with torch.device("meta"):
            model = head.auto_class.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BaseUnusable(f"the base is no model that can be trained: {error}") from error
    with torch.device("meta"):
        model = with_adapter(model, peft_config(method, head))
    counted = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return ModelSizes(total=sum(n for n, _ in counted), trainable=sum(n for n, trained in counted if trained))
