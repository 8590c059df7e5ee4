"""What an example is trained on, and which records are refused, with their file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from trireme.protocol import StoreConfig
from trireme_trainer.data.errors import DataEmpty, DataError
from trireme_trainer.data.example_files import ExampleFile, ExamplePreparation, ExamplesConfig, ExampleSourceConfig
from trireme_trainer.data.examples import (
    IGNORED,
    WITH_INPUT,
    WITHOUT_INPUT,
    ChatTemplateUnsuitable,
    Example,
    Formatter,
    Invalid,
)
from trireme_trainer.data.sources import SourceConfig
from trireme_trainer.data.tokenizer import END_OF_TEXT, train_tokenizer

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LAST_ONLY = "{% for m in messages %}{% if loop.last %}{{ m['content'] }}{% else %}.{% endif %}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(iter([Path(json.__file__).read_text()]), 400, 128, directory)
    return AutoTokenizer.from_pretrained(directory)


def parts(tokenizer: Any, example: Example) -> tuple[str, str]:
    """(text that does not count, text that counts)."""
    counts = [t for t, label in zip(example.tokens, example.labels, strict=True) if label != IGNORED]
    rest = [t for t, label in zip(example.tokens, example.labels, strict=True) if label == IGNORED]
    assert all(label in (token, IGNORED) for token, label in zip(example.tokens, example.labels, strict=True))
    return tokenizer.decode(rest), tokenizer.decode(counts)


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"instruction": "Add", "input": "1 2", "output": "3"}, WITH_INPUT.format(instruction="Add", input="1 2")),
        ({"instruction": "Add", "input": " ", "output": "3"}, WITHOUT_INPUT.format(instruction="Add")),
        ({"instruction": "Add", "output": "3"}, WITHOUT_INPUT.format(instruction="Add")),
    ],
    ids=["with input", "empty input", "no input"],
)
def test_an_instruction_counts_in_its_output(tokenizer: Any, record: dict[str, str], prompt: str) -> None:
    assert parts(tokenizer, Formatter("instruction", tokenizer).example(record, {})) == (prompt, f"3{END_OF_TEXT}")


def test_columns_may_have_other_names(tokenizer: Any) -> None:
    columns = {"instruction": "question", "output": "answer"}
    example = Formatter("instruction", tokenizer).example({"question": "Add", "answer": "3"}, columns)
    assert parts(tokenizer, example)[1] == f"3{END_OF_TEXT}"


def test_a_completion_counts_and_its_prompt_does_not_and_of_plain_text_all_does(tokenizer: Any) -> None:
    formatter = Formatter("completion", tokenizer)
    asked = formatter.example({"prompt": "def f(", "completion": "x):"}, {})
    assert parts(tokenizer, asked) == ("def f(", f"x):{END_OF_TEXT}")
    assert parts(tokenizer, formatter.example({"text": "import json"}, {})) == ("", f"import json{END_OF_TEXT}")


def test_of_a_chat_the_assistants_turns_count_with_their_ends(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "2"},
    ]
    example = Formatter("chat", tokenizer, CHATML).example({"messages": messages}, {})
    rest, counts = parts(tokenizer, example)
    assert counts == "1<|end|>\n2<|end|>\n"
    assert rest == (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nOne?<|end|>\n<|assistant|>\n<|user|>\nTwo?<|end|>\n<|assistant|>\n"
    )


WITH_TOOLS = (
    "{% if tools %}<|tools|>{{ tools | map(attribute='name') | join(',') }}<|end|>\n{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}CALL {{ call['function']['name'] }}{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def test_a_call_of_a_tool_counts_and_what_the_tool_answers_does_not(tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "clock"}}]},
        {"role": "tool", "content": "12:00", "name": "clock"},
        {"role": "assistant", "content": "Noon."},
    ]
    example = Formatter("chat", tokenizer, WITH_TOOLS).example({"messages": messages, "tools": [{"name": "clock"}]}, {})
    rest, counts = parts(tokenizer, example)
    assert counts == "CALL clock<|end|>\nNoon.<|end|>\n"
    assert rest == (
        "<|tools|>clock<|end|>\n<|user|>\nTime?<|end|>\n<|assistant|>\n<|tool|>\n12:00<|end|>\n<|assistant|>\n"
    )


USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("task", "record", "message"),
    [
        ("instruction", {"instruction": "a"}, "no field 'output'; it has 'instruction'"),
        ("instruction", {"instruction": "", "output": "b"}, "field 'instruction' is empty"),
        ("instruction", {"instruction": "a", "output": 3}, "field 'output' is int and not text"),
        ("completion", {"prompt": "a", "completion": "  "}, "field 'completion' is empty"),
        ("completion", {"prompt": "a"}, "no field 'completion'"),
        ("chat", {"messages": []}, "field 'messages' is no list of messages"),
        ("chat", {"messages": "hello"}, "field 'messages' is no list of messages"),
        ("chat", {"messages": [USER]}, "the last message is the user's"),
        ("chat", {"messages": [USER, {"role": "assistant", "content": ""}]}, "field 'content' is empty"),
        ("chat", {"messages": [USER, {"content": "b"}]}, "no field 'role'"),
        ("chat", {"messages": [USER, {"role": "assistant", "content": None}]}, "field 'content' is NoneType"),
        ("chat", {"messages": [USER, ASSISTANT], "tools": "clock"}, "field 'tools' is no list of tools"),
    ],
)
def test_a_record_that_does_not_fit_its_task_is_refused(
    tokenizer: Any, task: str, record: dict[str, Any], message: str
) -> None:
    with pytest.raises(Invalid, match=message):
        Formatter(task, tokenizer, CHATML).example(record, {})


def test_a_chat_needs_a_template_whose_turns_can_be_told_apart(tokenizer: Any) -> None:
    with pytest.raises(ChatTemplateUnsuitable, match="has no chat template"):
        Formatter("chat", tokenizer)
    with pytest.raises(ChatTemplateUnsuitable, match="renders a turn differently once another follows"):
        Formatter("chat", tokenizer, LAST_ONLY).example({"messages": [USER, ASSISTANT, USER, ASSISTANT]}, {})
    with pytest.raises(Invalid, match="the chat template refuses it: no system"):
        Formatter("chat", tokenizer, "{{ raise_exception('no system') }}").example({"messages": [USER, ASSISTANT]}, {})


def prepared(directory: Path, tokenizer: Any, lines: list[str], **changes: Any) -> tuple[Any, ExampleFile, ExampleFile]:
    """(index, training examples, held-out examples) of a file of completions."""
    source, files, out = directory / "data.jsonl", directory / "tokenizer", directory / "preparation" / "dataset"
    source.write_text("\n".join(lines))
    tokenizer.save_pretrained(files)
    config = ExamplesConfig(
        "completion", (ExampleSourceConfig(SourceConfig(str(source))),), **{"sequence_length": 16, **changes}
    )
    preparation = ExamplePreparation(
        config, Formatter("completion", tokenizer), files, StoreConfig(uri="s3://bucket/x"), out
    )
    index = preparation.run(vocab_size=400, eos_token_id=0)
    (only,) = index.sources
    return index, ExampleFile(out / only.train_path), ExampleFile(out / only.validation_path)


def line(prompt: str, completion: str) -> str:
    return json.dumps({"prompt": prompt, "completion": completion})


LONG = line("a", "json " * 40)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", r"data.jsonl line 3: no JSON"),
        ("[1]", r"data.jsonl line 3: no JSON object"),
        (json.dumps({"question": "a"}), r"data.jsonl line 3: no field 'prompt'"),
        (LONG, r"data.jsonl line 3: \d+ tokens, data.sequenceLength is 16"),
    ],
    ids=["no JSON", "no object", "another column", "too long"],
)
def test_the_first_line_that_cannot_be_used_is_named(tmp_path: Path, tokenizer: Any, bad: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as refused:
        prepared(tmp_path, tokenizer, [line("a", "b"), "", bad, "{"])
    assert refused.value.reason == "ExampleInvalid"
    assert not refused.value.retryable


def test_longer_examples_are_cut_or_dropped_on_demand(tmp_path: Path, tokenizer: Any) -> None:
    index, cut, _ = prepared(tmp_path, tokenizer, [line("a", "b"), LONG], overlong="truncate")
    assert index.sources[0].documents == 2
    assert cut.ends[1] - cut.ends[0] == 16
    index, _, _ = prepared(tmp_path, tokenizer, [line("a", "b"), LONG], overlong="drop")
    assert index.sources[0].documents == 1
    with pytest.raises(DataError, match="line 1: its prompt alone fills the 16 tokens"):
        prepared(tmp_path, tokenizer, [line("json " * 40, "b")], overlong="truncate")
    with pytest.raises(DataEmpty, match="no example is left to train on"):
        prepared(tmp_path, tokenizer, [LONG], overlong="drop")


def test_held_out_examples_are_chosen_by_their_content(tmp_path: Path, tokenizer: Any) -> None:
    lines = [line(str(number), "b") for number in range(200)]
    index, train, held = prepared(tmp_path, tokenizer, lines, validation_fraction=0.2)
    assert len(train) + len(held) == 200
    assert 20 <= len(held) <= 60
    again, _, held_again = prepared(tmp_path, tokenizer, lines, validation_fraction=0.2)
    assert again.encode() == index.encode()
    assert held_again.tokens.tolist() == held.tokens.tolist()
