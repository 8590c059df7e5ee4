"""Documents become token files once, the same every time, and bad data is named."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trireme.protocol import StoreConfig
from trireme_trainer.data.dataset import TokenDataset
from trireme_trainer.data.errors import (
    DataEmpty,
    DataError,
    DataNotFound,
    DataUnreadable,
    NoTokens,
    TokenizerUnusable,
)
from trireme_trainer.data.order import SampleId
from trireme_trainer.data.prepare import DataConfig, Preparation
from trireme_trainer.data.sources import SourceConfig, glob_to_regex
from trireme_trainer.data.tokenizer import load_tokenizer

STORE = StoreConfig(uri="s3://bucket/x")


def prepare(directory: Path, *sources: SourceConfig, **changes: Any) -> Any:
    options: dict[str, Any] = {"sequence_length": 16, "vocab_size": 300, "model_vocab_size": 512, **changes}
    return Preparation(DataConfig(sources=sources, **options), STORE, directory / "dataset").run()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    for number in range(12):
        path = root / f"part{number % 3}" / f"file{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"Document {number}: the quick brown fox jumps over the lazy dog. " * 8)
    return root


def decode(directory: Path, tokens: np.ndarray[Any, Any]) -> str:
    text: str = load_tokenizer(directory / "tokenizer").tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
    return text


def test_the_same_documents_give_the_same_digest_and_others_another(tmp_path: Path, corpus: Path) -> None:
    source = SourceConfig(str(corpus))
    digests = [prepare(tmp_path / str(n), source).to_ref("").digest for n in range(2)]
    assert digests[0] == digests[1]
    (corpus / "part0" / "file0.txt").write_text("changed " * 50)
    assert prepare(tmp_path / "c", source).to_ref("").digest != digests[0]


def test_packed_samples_are_consecutive_and_labels_are_the_next_tokens(tmp_path: Path, corpus: Path) -> None:
    index = prepare(tmp_path, SourceConfig(str(corpus)))
    dataset = TokenDataset(tmp_path / "dataset", 16)
    count = dataset.train_sequences[0]
    assert count == (index.sources[0].tokens - 1) // 16
    batch = dataset.train([SampleId(0, 0, i) for i in range(count)])
    assert batch.loss_mask is None
    assert (batch.tokens[:, 1:] == batch.labels[:, :-1]).all()
    assert (batch.labels[:-1, -1] == batch.tokens[1:, 0]).all()
    text = decode(tmp_path / "dataset", batch.tokens.reshape(-1))
    assert text.startswith("Document 0: the quick brown fox")
    assert text.count("<|endoftext|>") in (11, 12)


def test_unpacked_samples_never_cross_documents_and_padding_is_masked(tmp_path: Path, corpus: Path) -> None:
    prepare(tmp_path, SourceConfig(str(corpus)), packing=False)
    dataset = TokenDataset(tmp_path / "dataset", 64)
    batch = dataset.train([SampleId(0, 0, i) for i in range(dataset.train_sequences[0])])
    assert batch.loss_mask is not None
    eos = dataset.index.eos_token_id
    for labels, mask in zip(batch.labels, batch.loss_mask, strict=True):
        inside = labels[mask > 0]
        assert len(inside) > 0
        assert (inside[:-1] != eos).all()
    # Every token but each document's first is predicted exactly once.
    assert int(batch.loss_mask.sum()) == dataset.index.sources[0].tokens - 12


def test_validation_files_are_absent_from_training(tmp_path: Path, corpus: Path) -> None:
    held = SourceConfig(str(corpus), include=("part1/*",))
    index = prepare(tmp_path, SourceConfig(str(corpus)), validation_sources=(held,))
    assert index.sources[0].documents == 8
    assert index.sources[1].validation_documents == 4
    dataset = TokenDataset(tmp_path / "dataset", 16)
    train = decode(tmp_path / "dataset", dataset.train([SampleId(0, 0, i) for i in range(20)]).tokens.reshape(-1))
    assert "Document 1:" not in train
    positions = dataset.validation_positions(5)
    assert len(positions) == 5
    assert len(set(positions)) == 5


def test_a_fraction_of_documents_is_held_out_by_content(tmp_path: Path, corpus: Path) -> None:
    index = prepare(tmp_path, SourceConfig(str(corpus)), validation_fraction=0.5)
    source = index.sources[0]
    assert source.documents + source.validation_documents == 12
    assert source.documents > 0
    assert source.validation_documents > 0


def test_jsonl_and_gzip_give_a_document_a_line(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"body": f"line {n} " * 20}) for n in range(5)) + "\n\n"
    with gzip.open(tmp_path / "data.jsonl.gz", "wt") as file:
        file.write(lines)
    index = prepare(tmp_path, SourceConfig(str(tmp_path / "data.jsonl.gz"), text_field="body"))
    assert index.sources[0].documents == 5


@pytest.mark.parametrize(
    ("files", "source", "changes", "error", "named"),
    [
        ({}, {}, {}, DataNotFound, "corpus"),
        ({"a.txt": "x"}, {"include": ("*.py",)}, {}, DataNotFound, "*.py"),
        ({"a.txt": ""}, {}, {}, DataEmpty, "corpus"),
        ({"a.txt": "short"}, {}, {}, NoTokens, "corpus"),
        ({"a.jsonl": '{"other": 1}\n'}, {}, {}, DataUnreadable, "a.jsonl line 1"),
        ({"a.jsonl": '{"text": 1}\n'}, {}, {}, DataUnreadable, "a.jsonl line 1"),
        ({"a.txt": "\0\1\2"}, {}, {}, DataUnreadable, "a.txt"),
        ({"a.txt.gz": "no gzip"}, {}, {}, DataUnreadable, "a.txt.gz"),
        ({"a.txt": "word " * 500}, {}, {"model_vocab_size": 256}, TokenizerUnusable, "256"),
        ({"a.txt": "word " * 500}, {}, {"tokenizer_uri": "/nowhere"}, TokenizerUnusable, "/nowhere"),
        (
            {"a.txt": "word " * 500},
            {},
            {"tokenizer_uri": "/proc/self/fdinfo"},
            TokenizerUnusable,
            "/proc/self/fdinfo: no",
        ),
    ],
)
def test_bad_data_is_refused_with_its_path(
    tmp_path: Path,
    files: dict[str, str],
    source: dict[str, Any],
    changes: dict[str, Any],
    error: type[DataError],
    named: str,
) -> None:
    root = tmp_path / "corpus"
    if files:
        root.mkdir()
    for name, text in files.items():
        (root / name).write_text(text)
    with pytest.raises(error) as caught:
        prepare(tmp_path, SourceConfig(str(root), **source), **changes)
    assert named in caught.value.message


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("**/*.py", "a.py", True),
        ("**/*.py", "x/y/a.py", True),
        ("*.py", "x/a.py", False),
        ("x/**", "x/y/z", True),
        ("**/test/**", "a/test/b.py", True),
        ("**/test/**", "a/tests/b.py", False),
        ("a?.txt", "ab.txt", True),
        ("a.txt", "aatxt", False),
    ],
)
def test_stars_stay_in_a_folder_and_double_stars_do_not(pattern: str, name: str, matches: bool) -> None:
    assert bool(glob_to_regex(pattern).match(name)) is matches


def test_a_damaged_gzip_is_refused_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "text" / "a.txt.gz"
    path.parent.mkdir()
    whole = bytearray(gzip.compress(random.Random(1).randbytes(4000).hex().encode()))
    whole[1000:1400] = bytes(400)
    path.write_bytes(whole)
    with pytest.raises(DataUnreadable, match=r"a\.txt\.gz"):
        prepare(tmp_path, SourceConfig(str(path.parent)))


def test_half_a_character_in_json_becomes_a_replacement_character(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(r'{"text": "one \ud83d half, one \ud83d\ude00 whole, %s"}' % ("and words " * 40) + "\n")
    prepare(tmp_path, SourceConfig(str(path)))
    dataset = TokenDataset(tmp_path / "dataset", 16)
    batch = dataset.train([SampleId(0, 0, i) for i in range(dataset.train_sequences[0])])
    text = decode(tmp_path / "dataset", batch.tokens.reshape(-1))
    assert text.startswith("one \N{REPLACEMENT CHARACTER} half, one \N{GRINNING FACE} whole")


def test_json_nested_too_deep_is_refused_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "fine"}\n' + "[" * 100_000 + "\n")
    with pytest.raises(DataUnreadable, match="line 2"):
        prepare(tmp_path, SourceConfig(str(path)))
