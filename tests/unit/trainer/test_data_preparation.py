"""Documents become token files once, the same every time, and bad data is named."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trireme.protocol import StoreConfig
from trireme_trainer.data import prepare as preparing
from trireme_trainer.data import sources
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
from trireme_trainer.data.prepare import DataConfig, Preparation, TokenWriter
from trireme_trainer.data.sources import Document, Source, SourceConfig, glob_to_regex
from trireme_trainer.data.tokenizer import TokenizerInfo, load_tokenizer

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


class Characters:
    """A tokenizer of which a character is a token, and which notes how much it is given at once."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode_batch_fast(self, pieces: list[str], *, add_special_tokens: bool) -> list[SimpleNamespace]:
        self.batches.append(sum(map(len, pieces)))
        return [SimpleNamespace(ids=[ord(c) for c in piece]) for piece in pieces]


def test_a_large_document_is_encoded_in_bounded_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "BATCH_CHARACTERS", 250)
    characters = Characters()
    read = 0

    def pieces(count: int) -> Iterator[str]:
        nonlocal read
        for number in range(count):
            read += 100
            assert read - sum(characters.batches) <= 350, "text is read ahead of what is encoded"
            yield chr(97 + number % 26) * 100

    writer = TokenWriter(tmp_path / "t.bin", TokenizerInfo(characters, 256, 0), with_ends=True)
    for count in (100, 1, 7):
        writer.add(Document("first", pieces(count)))
    writer.add(Document("", iter(())))
    writer.close()
    texts = ["first" + "".join(chr(97 + n % 26) * 100 for n in range(count)) for count in (100, 1, 7)]
    assert np.fromfile(tmp_path / "t.bin", "<u2").tolist() == [i for text in texts for i in (*map(ord, text), 0)]
    assert (writer.documents, writer.tokens) == (3, sum(map(len, texts)) + 3)
    assert np.fromfile(tmp_path / "t.ends", "<u8").tolist() == np.cumsum([len(t) + 1 for t in texts]).tolist()


def test_a_large_file_is_read_no_further_than_its_pieces_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("line\n" * 1000)
    opened: list[io.StringIO] = []

    def open_text(path: Path, _name: str) -> io.StringIO:
        opened.append(io.StringIO(path.read_text()))
        return opened[-1]

    monkeypatch.setattr(sources, "PIECE_CHARACTERS", 50)
    monkeypatch.setattr(sources, "open_text", open_text)
    source = Source(SourceConfig(str(tmp_path)), STORE, tmp_path / "cache")
    documents = source.documents(source.files()[0])
    document = next(documents)
    assert next(document.pieces).startswith("line")
    assert opened[0].tell() < 100


def test_how_much_is_encoded_at_once_changes_no_token(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "PIECE_CHARACTERS", 100)
    digests = set()
    for batch in (1, 150, 1 << 20):
        monkeypatch.setattr(preparing, "BATCH_CHARACTERS", batch)
        index = prepare(tmp_path / str(batch), SourceConfig(str(corpus)), validation_fraction=0.5, packing=False)
        digests.add(index.to_ref("").digest)
    assert len(digests) == 1


@pytest.mark.parametrize("damaged_at", [1000, 60_000], ids=["first piece", "later piece"])
def test_a_damaged_gzip_is_refused_with_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged_at: int
) -> None:
    monkeypatch.setattr(sources, "PIECE_CHARACTERS", 100)
    path = tmp_path / "text" / "a.txt.gz"
    path.parent.mkdir()
    lines = "\n".join(random.Random(n).randbytes(40).hex() for n in range(2000))
    whole = bytearray(gzip.compress(lines.encode()))
    whole[damaged_at : damaged_at + 400] = bytes(400)
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
