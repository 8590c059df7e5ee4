"""Several examples in one row: which ones share it, and that none of them learns of another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from trireme.protocol import StoreConfig
from trireme_trainer.data.example_files import ExampleFile, ExamplePreparation, ExamplesConfig, ExampleSourceConfig
from trireme_trainer.data.examples import IGNORED, Example
from trireme_trainer.data.packing import best_fit_rows
from trireme_trainer.data.sources import SourceConfig
from trireme_trainer.finetune.batches import PackedRows
from trireme_trainer.hf.data import ExampleDataset

CAPACITY = 16


@given(st.lists(st.integers(1, CAPACITY), max_size=60))
def test_rows_hold_each_example_once_and_no_two_of_them_fit_into_one(lengths: list[int]) -> None:
    rows = best_fit_rows(np.asarray(lengths, dtype=np.int64), CAPACITY)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    filled = sorted(sum(lengths[number] for number in row) for row in rows)
    assert all(size <= CAPACITY for size in filled)
    assert len(filled) < 2 or filled[0] + filled[1] > CAPACITY
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


def test_the_tightest_room_is_taken() -> None:
    """10 goes alone, 6 beside nothing, 5 into a new row; 4 fits exactly beside 6, 3 and 2 beside 5."""
    assert best_fit_rows(np.array([5, 6, 2, 4, 10, 3]), 10) == [[0, 2, 5], [1, 3], [4]]


class Numbers:
    """Records are what they are trained on: {"tokens": [...]}, all of which count but the first."""

    def example(self, record: Any, columns: Any) -> Example:
        tokens = record["tokens"]
        return Example(tokens, [IGNORED, *tokens[1:]])

    def length(self, example: Example) -> int:
        return len(example.tokens)

    def cut(self, example: Example, limit: int) -> Example:
        raise AssertionError("none is too long")


def prepare(directory: Path, examples: list[list[int]], *, packing: bool) -> tuple[Any, Path]:
    source, out = directory / "data.jsonl", directory / f"packing-{packing}" / "dataset"
    source.write_text("\n".join(json.dumps({"tokens": tokens}) for tokens in examples))
    tokenizer = directory / "tokenizer"
    tokenizer.mkdir(exist_ok=True)
    (tokenizer / "tokenizer.json").write_text("{}")
    config = ExamplesConfig("completion", (ExampleSourceConfig(SourceConfig(str(source))),), CAPACITY, packing=packing)
    preparation = ExamplePreparation(config, Numbers(), tokenizer, StoreConfig(uri="s3://bucket/x"), out)
    return preparation.run(vocab_size=64, eos_token_id=0), out


@pytest.fixture(scope="module")
def examples() -> list[list[int]]:
    draw = np.random.default_rng(0)
    return [draw.integers(1, 64, size=draw.integers(3, 13)).tolist() for _ in range(40)]


def test_a_packed_data_set_holds_the_same_examples_in_fewer_rows(tmp_path: Path, examples: list[list[int]]) -> None:
    index, out = prepare(tmp_path, examples, packing=True)
    (source,) = index.sources
    assert (source.documents, source.tokens) == (40, sum(map(len, examples)))
    assert -(-source.tokens // CAPACITY) <= source.rows < 40
    file = ExampleFile(out / source.train_path)
    stored = [t.tolist() for t in np.split(np.asarray(file.tokens), file.ends[:-1])]
    assert sorted(stored) == sorted(examples)
    labels = [t.tolist() for t in np.split(np.asarray(file.labels), file.ends[:-1])]
    assert labels == [[IGNORED, *tokens[1:]] for tokens in stored]
    again, _ = prepare(tmp_path, examples, packing=True)
    assert again.encode() == index.encode()
    assert index.to_ref("s3://x").rows == source.rows
    plain, _ = prepare(tmp_path, examples, packing=False)
    assert plain.to_ref("s3://x").rows is None


def test_the_rows_of_a_step_depend_on_step_and_seed_only(tmp_path: Path, examples: list[list[int]]) -> None:
    index, out = prepare(tmp_path, examples, packing=True)
    data, again = (ExampleDataset(out, seed=3, examples_per_step=4) for _ in range(2))
    steps = index.sources[0].rows // 4
    assert [again.rows(step) for step in reversed(range(steps))][::-1] == [data.rows(step) for step in range(steps)]
    seen = [row for step in range(steps) for row in data.rows(step)]
    assert len(set(seen)) == len(seen) == steps * 4
    assert data.rows(0) != ExampleDataset(out, seed=4, examples_per_step=4).rows(0)
    assert data.tokens(0) == sum(len(data.train.dataset[row]["input_ids"]) for row in data.rows(0))
    for row in data.train.dataset:
        assert sum(row["seq_lengths"]) == len(row["input_ids"]) == len(row["labels"])


def llama(attention: str) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.1,  # so that what stands before a token matters
            attn_implementation=attention,
        )
    )


def gpt2(attention: str) -> Any:
    """Learned positions instead of rotary ones."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 64,
        "n_positions": CAPACITY,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "initializer_range": 0.1,
    }
    return GPT2LMHeadModel(GPT2Config(**shape, attn_implementation=attention)).eval()


def loss_and_gradients(model: Any, batches: list[dict[str, torch.Tensor]]) -> tuple[float, list[torch.Tensor]]:
    """Mean cross entropy over all tokens of all batches that count, and its gradients."""
    model.zero_grad()
    total, count = torch.zeros(()), 0
    for batch in batches:
        labels = batch["labels"][:, 1:]
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False).logits[:, :-1]
        total = total + cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        count += int((labels != IGNORED).sum())
    loss = total / count
    loss.backward()
    return float(loss.detach()), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [llama, gpt2], ids=["rotary positions", "learned positions"])
def test_a_packed_batch_has_the_loss_and_gradients_of_its_examples_apart(
    tmp_path: Path, examples: list[list[int]], make: Any, attention: str
) -> None:
    _, out = prepare(tmp_path, examples, packing=True)
    rows = ExampleDataset(out, seed=0, examples_per_step=4).train.dataset
    packed = PackedRows(pad_token_id=0)(list(rows))
    apart = [
        {"input_ids": torch.tensor([tokens]), "labels": torch.tensor([[IGNORED, *tokens[1:]]])} for tokens in examples
    ]
    model = make(attention)
    expected, gradients = loss_and_gradients(model, apart)
    found, of_packed = loss_and_gradients(model, [packed])
    assert abs(found - expected) < 1e-5
    assert max(float((a - b).abs().max()) for a, b in zip(gradients, of_packed, strict=True)) < 1e-5
    # The same rows as one text each: examples see those before them, and the loss is another.
    joined, _ = loss_and_gradients(model, [{k: v for k, v in packed.items() if k != "position_ids"}])
    assert abs(joined - expected) > 1e-3


def test_no_example_of_a_row_changes_anothers_logits(examples: list[list[int]]) -> None:
    model, (first, second) = llama("sdpa").eval(), examples[:2]
    rows = [{"input_ids": [*first, *second], "labels": [*first, *second], "seq_lengths": [len(first), len(second)]}]
    batch = PackedRows(pad_token_id=0)(rows)
    assert batch["labels"][0, len(first)] == IGNORED
    labels = batch.pop("labels")
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, : len(first)] = 1
    with torch.no_grad():
        before, after = (model(**given, use_cache=False).logits for given in (batch, changed))
    assert labels.shape == before.shape[:2]
    assert torch.equal(before[0, len(first) :], after[0, len(first) :])
    assert not torch.equal(before[0, : len(first)], after[0, : len(first)])
