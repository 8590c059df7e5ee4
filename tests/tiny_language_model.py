"""A Llama small enough to be served by processors, its tokenizer, and adapters of it; nothing is trained."""

import inspect
import json
import string
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trireme.checkpoints import Manifest, ShardFile
from trireme_storage.store import hash_file

VOCABULARY = 320
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def write_model(directory: Path, seed: int = 0) -> None:
    """A model with random weights in Hugging Face layout."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        # Answers that never end early: how long a stream takes must not be left to chance.
        eos_token_id=None,
        bos_token_id=None,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    _tokenizer().save_pretrained(directory)


def write_adapter(directory: Path, base: Path, base_uri: str, seed: int) -> None:
    """A LoRA adapter with random weights in both of its matrices, so that it changes every answer."""
    torch.manual_seed(seed)
    model = get_peft_model(
        LlamaForCausalLM.from_pretrained(base),
        LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=64, target_modules=["q_proj", "v_proj", "down_proj"]),
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter.data, std=0.5)
    model.peft_config["default"].base_model_name_or_path = base_uri
    model.save_pretrained(directory)


def write_manifest(directory: Path, **state: object) -> str:
    """The manifest that an export has beside its files; its digest."""
    files = []
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        size, sha256 = hash_file(path)
        files.append(ShardFile(path=path.relative_to(directory).as_posix(), bytes=size, sha256=sha256))
    sizes, empty = {"attempt": 1, "step": 1, "tokens": 1}, {"job_uid": "", "model_digest": "", "dataset_digest": ""}
    manifest = Manifest.model_validate({**sizes, **empty, "layout": {}, "files": files, "state": state})
    (directory / "manifest.json").write_bytes(manifest.encode())
    return manifest.digest


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([inspect.getsource(json), inspect.getsource(string)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE)
