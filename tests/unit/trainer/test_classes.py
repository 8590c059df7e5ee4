"""The classes of a classification: given or found, and which labels are refused, with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from trireme.protocol import StoreConfig
from trireme_trainer.data.classes import Classes, ClassFormatter, LabelsUnusable
from trireme_trainer.data.errors import DataError
from trireme_trainer.data.example_files import ExampleFile, ExamplePreparation, ExamplesConfig, ExampleSourceConfig
from trireme_trainer.data.examples import Invalid
from trireme_trainer.data.sources import SourceConfig
from trireme_trainer.data.tokenizer import train_tokenizer
from trireme_trainer.hf.data import ExampleDataset


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(iter([Path(json.__file__).read_text()]), 400, 128, directory)
    return AutoTokenizer.from_pretrained(directory)


def prepared(directory: Path, tokenizer: Any, records: list[Any], names: tuple[str, ...] = (), **more: Any) -> Any:
    """(index, folder of the data set)"""
    source, files, out = directory / "data.jsonl", directory / "tokenizer", directory / "preparation" / "dataset"
    source.write_text("\n".join(map(json.dumps, records)))
    tokenizer.save_pretrained(files)
    sources = (ExampleSourceConfig(SourceConfig(str(source)), more.pop("columns", {})),)
    config = ExamplesConfig("classification", sources, **{"sequence_length": 16, **more})
    classes = Classes(names)
    preparation = ExamplePreparation(
        config, ClassFormatter(tokenizer, classes), files, StoreConfig(uri="s3://bucket/x"), out
    )
    return preparation.run(vocab_size=400, eos_token_id=0, classes=classes), out


def texts(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": f"json {number}", "label": label} for number, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("names", "labels", "expected", "numbers"),
    [
        ((), ["no", "yes", "no", "maybe"], ["maybe", "no", "yes"], [1, 2, 1, 0]),
        ((), [2, 0, 1, 0], ["0", "1", "2"], [2, 0, 1, 0]),
        (("yes", "no"), ["no", "yes", 0, 1], ["yes", "no"], [1, 0, 0, 1]),
        ((), list(range(11)), [str(n) for n in range(11)], list(range(11))),
    ],
    ids=["found names in order of the alphabet", "found numbers", "given names", "numbers in order of size"],
)
def test_labels_become_numbers(
    tmp_path: Path, tokenizer: Any, names: tuple[str, ...], labels: list[Any], expected: list[str], numbers: list[int]
) -> None:
    index, out = prepared(tmp_path, tokenizer, texts(*labels), names)
    assert index.classes == expected
    assert ExampleFile(out / index.sources[0].train_path).labels.tolist() == numbers
    rows = ExampleDataset(out, seed=0, examples_per_step=2).train.dataset
    assert [row["labels"] for row in rows] == numbers
    assert tokenizer.decode(rows[1]["input_ids"]) == "json 1"


def test_a_long_text_is_cut_and_keeps_its_label(tmp_path: Path, tokenizer: Any) -> None:
    records = [{"body": "json " * 40, "kind": "a"}, {"body": "x", "kind": "b"}]
    columns = {"text": "body", "label": "kind"}
    index, out = prepared(tmp_path, tokenizer, records, overlong="truncate", columns=columns)
    file = ExampleFile(out / index.sources[0].train_path)
    assert (file.ends[0], file.labels.tolist()) == (16, [0, 1])


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (("a", "b"), ["a", "c"], r"data.jsonl line 2: label 'c' is not in data.labels \(a, b\)"),
        (("a", "b"), ["a", 2], r"line 2: label 2 is none of the 2 classes of data.labels, 0 to 1"),
        ((), ["a", 1], r"line 2: label 1 is of another type than 'a'"),
        ((), [1, True], r"line 2: the label is bool"),
        ((), ["a", 0.5], r"line 2: the label is float"),
        ((), ["a", None], r"line 2: the label is NoneType"),
        ((), ["a", " "], r"line 2: label ' ' names no class"),
        ((), [0, -1], r"line 2: label -1 names no class"),
        ((), [*map(str, range(1001))], r"line 1001: label '1000' is a class more than 1000"),
    ],
)
def test_the_first_label_that_cannot_be_used_is_named(
    tmp_path: Path, tokenizer: Any, names: tuple[str, ...], labels: list[Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as refused:
        prepared(tmp_path, tokenizer, texts(*labels), names)
    assert (refused.value.reason, refused.value.retryable) == ("ExampleInvalid", False)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a"}, "no field 'label'; it has 'text'"),
        ({"label": "a"}, "no field 'text'"),
        ({"text": "", "label": "a"}, "field 'text' is empty"),
        ({"text": ["a"], "label": "a"}, "field 'text' is list"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tokenizer: Any, record: dict[str, Any], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        ClassFormatter(tokenizer, Classes()).example(record, {})


@pytest.mark.parametrize(
    ("labels", "message"), [(["a", "a"], "every example has the label 'a'"), ([0, 1, 3], "2 is none of them")]
)
def test_labels_that_make_no_classes_are_refused(
    tmp_path: Path, tokenizer: Any, labels: list[Any], message: str
) -> None:
    with pytest.raises(LabelsUnusable, match=message):
        prepared(tmp_path, tokenizer, texts(*labels))
