"""A reward model scores what it was taught on, and as it was taught; what does not load is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from trireme_trainer.data.preferences import ComparisonFormatter, Prompts, split
from trireme_trainer.data.tokenizer import train_tokenizer
from trireme_trainer.rlhf.reward_model import WholeAnswers
from trireme_trainer.rlhf.rewards.batch import Completions
from trireme_trainer.rlhf.rewards.errors import RewardUnusable
from trireme_trainer.rlhf.rewards.model import RewardModel

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}" + (
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
RECORDS: list[dict[str, Any]] = [
    {"prompt": "def add(a, b):", "chosen": " return a + b", "rejected": " return"},
    {"prompt": "def read(path, encoding):", "chosen": " return open(path, encoding=encoding)", "rejected": " no"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of one label whose end-of-text token is its padding token too, as of most language models."""
    made = tmp_path_factory.mktemp("judge")
    train_tokenizer(["def add(a, b): return a + b\n", "<user>ask\n<assistant>yes\n"], 280, 64, made)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=280, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=512, initializer_range=0.3, eos_token_id=0, pad_token_id=0, num_labels=1,
    )  # fmt: skip
    LlamaForSequenceClassification(shape).save_pretrained(made)
    tokenizer = AutoTokenizer.from_pretrained(made)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(made)
    return made


def make(folder: Path, batch_size: int = 3) -> RewardModel:
    return RewardModel("liked", folder, device=torch.device("cpu"), dtype=torch.float32, batch_size=batch_size)


def as_messages(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "prompt": [{"role": "user", "content": record["prompt"]}]}


@pytest.mark.parametrize("records", [RECORDS, [as_messages(r) for r in RECORDS]], ids=["texts", "messages"])
def test_a_completion_scores_what_the_taught_model_answers_to_it(folder: Path, records: list[dict[str, Any]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token_id == 0
    taught: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    formatter = ComparisonFormatter(Prompts(tokenizer))
    rows = [
        dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), split(formatter.example(r, {})), strict=True))
        for r in records
    ]
    batch = WholeAnswers(pad_token_id=0)(rows)
    with torch.no_grad():
        expected = taught(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    prompts = [Prompts(tokenizer).prompt(r, "prompt") for r in records] * 2
    given = Completions(
        prompts=[text for text, _ in prompts],
        texts=[r[name] for name in ("chosen", "rejected") for r in records],
        lengths=[1] * 4,
        ended=[True] * 4,
        messages=[messages for _, messages in prompts],
        fields=[{}] * 4,
    )
    assert make(folder).score(given, lambda: None) == pytest.approx(expected.tolist(), abs=1e-5)
    assert len({round(score, 3) for score in expected.tolist()}) == 4, "scores that could be told apart"


def test_a_corrupt_weight_file_of_a_reward_model_is_named(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(RewardUnusable, match=r"reward liked: .*model\.safetensors is corrupt"):
        make(tmp_path)


def test_no_pickle_is_loaded_as_a_reward_model(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(LlamaForSequenceClassification.from_pretrained(folder).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(RewardUnusable, match="no reward model that loads"):
        make(tmp_path)
