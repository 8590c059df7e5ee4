"""The tokenizer: byte-level BPE trained once, or one that the user brings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from trireme_trainer.data.errors import TokenizerUnusable

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"


@dataclass(frozen=True)
class TokenizerInfo:
    """A tokenizer and what the data set needs of it."""

    tokenizer: Tokenizer
    vocab_size: int
    eos_token_id: int

    @property
    def dtype(self) -> str:
        """NumPy type that holds every token id."""
        return "uint16" if self.vocab_size <= 65536 else "uint32"


def sample_bytes(vocab_size: int) -> int:
    """Text a tokenizer of this size is trained on: 1 KiB per entry, at least 4 MiB."""
    return max(4 << 20, vocab_size << 10)


def train_tokenizer(texts: Iterator[str], vocab_size: int, sequence_length: int, directory: Path) -> TokenizerInfo:
    """Train byte-level BPE (Radford et al. 2019, section 2.2) and write it in Hugging Face layout."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / TOKENIZER_FILE))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "model_max_length": sequence_length,
        "clean_up_tokenization_spaces": False,
    }
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return load_tokenizer(directory)


def load_tokenizer(directory: Path) -> TokenizerInfo:
    """The tokenizer in a folder of Hugging Face layout. Raises TokenizerUnusable."""
    path = directory / TOKENIZER_FILE
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for every fault of the file
        raise TokenizerUnusable(f"{path.name} of {directory} cannot be loaded: {error}") from error
    eos = _end_of_text(directory, tokenizer)
    # Ids may have holes; the model's embedding must reach the largest.
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    return TokenizerInfo(tokenizer, size, eos)


def _end_of_text(directory: Path, tokenizer: Tokenizer) -> int:
    candidates: list[str] = []
    for name in (CONFIG_FILE, "special_tokens_map.json"):
        path = directory / name
        if path.is_file():
            value = json.loads(path.read_text()).get("eos_token")
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                candidates.append(text)
    for candidate in [*candidates, END_OF_TEXT, "</s>"]:
        token_id = tokenizer.token_to_id(candidate)
        if token_id is not None:
            return int(token_id)
    raise TokenizerUnusable(f"{directory}: no end-of-text token; looked for {[*candidates, END_OF_TEXT, '</s>']}")
