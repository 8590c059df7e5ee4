"""From records to what a model is aligned with: comparisons of two answers to a prompt, or prompts alone.

A prompt and its answers are texts, or lists of messages that the chat template renders. They are tokenised apart, as
they meet when the model is served.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, cast

from trireme_trainer.data.examples import (
    ChatTemplateUnsuitable,
    Example,
    Invalid,
    Record,
    TextTokenizer,
    messages_of,
    render_chat,
    text_of,
)


class Part(IntEnum):
    """The labels of a comparison's tokens: which part each belongs to."""

    PROMPT = 0
    CHOSEN = 1
    REJECTED = 2


class Prompts:
    """Renders and tokenises prompts and answers."""

    def __init__(self, tokenizer: TextTokenizer, chat_template: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._template = chat_template or tokenizer.chat_template

    def prompt(self, record: Record, column: str) -> tuple[str, list[dict[str, str]] | None]:
        """(text that the model goes on from, the messages it was rendered from if any). Raises Invalid, DataError."""
        if isinstance(record.get(column), list):
            messages = messages_of(record, column)
            if messages[-1]["role"] == "assistant":
                raise Invalid(f"field {column!r} ends with the assistant's turn: nothing is left to answer")
            return self._render(messages, ask=True), messages
        return text_of(record, column), None

    def answer(self, record: Record, column: str, asked: str, messages: list[dict[str, str]] | None) -> str:
        """The text of an answer, with what ends a turn. Raises Invalid, DataError."""
        if messages is None:
            return text_of(record, column)
        said = (
            messages_of(record, column)
            if isinstance(record.get(column), list)
            else [{"role": "assistant", "content": text_of(record, column)}]
        )
        text = self._render([*messages, *said])
        if not text.startswith(asked):
            raise ChatTemplateUnsuitable(
                "the chat template renders a prompt differently once it is answered, so that nobody can tell where the "
                "answer begins; give a template of plain turns in data.chatTemplate"
            )
        return text[len(asked) :]

    def ids(self, text: str) -> list[int]:
        """Tokens of a text, without the tokenizer's special ones."""
        return cast(list[int], self._tokenizer(text, add_special_tokens=False)["input_ids"])

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return self._tokenizer.eos_token_id

    def _render(self, messages: list[dict[str, str]], *, ask: bool = False) -> str:
        if not self._template:
            raise ChatTemplateUnsuitable(
                "the model's tokenizer has no chat template for messages; give one in data.chatTemplate"
            )
        return render_chat(self._tokenizer, self._template, messages, ask=ask)


class ComparisonFormatter:
    """Records of prompt, chosen and rejected become examples of all three, their parts told by the labels."""

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = prompts

    def example(self, record: Record, columns: Mapping[str, str]) -> Example:
        """The example of a record. Raises Invalid, DataError."""
        names = {name: columns.get(name, name) for name in ("prompt", "chosen", "rejected")}
        asked, messages = self._prompts.prompt(record, names["prompt"])
        chosen, rejected = (
            self._prompts.answer(record, names[name], asked, messages) for name in ("chosen", "rejected")
        )
        if chosen == rejected:
            raise Invalid(f"fields {names['chosen']!r} and {names['rejected']!r} are equal: nothing is preferred")
        parts = [self._prompts.ids(asked)]
        for answer in (chosen, rejected):
            tokens = self._prompts.ids(answer)
            # Templates end turns with the token themselves.
            parts.append(tokens if tokens[-1:] == [self._prompts.end] else [*tokens, self._prompts.end])
        return _joined(parts)

    def length(self, example: Example) -> int:
        """Tokens of the prompt with the longer answer."""
        prompt, chosen, rejected = split(example)
        return len(prompt) + max(len(chosen), len(rejected))

    def cut(self, example: Example, limit: int) -> Example:
        """Its answers without what passes the limit. Raises Invalid when nothing is left to compare."""
        prompt, chosen, rejected = split(example)
        left = limit - len(prompt)
        if left <= 0:
            raise Invalid(f"its prompt alone fills the {limit} tokens of data.sequenceLength")
        if chosen[:left] == rejected[:left]:
            raise Invalid(f"chosen and rejected are equal within the {limit} tokens of data.sequenceLength")
        return _joined([prompt, chosen[:left], rejected[:left]])


def _joined(parts: list[list[int]]) -> Example:
    return Example(
        [token for part in parts for token in part],
        [int(part) for part, tokens in zip(Part, parts, strict=True) for _ in tokens],
    )


def split(example: Example) -> tuple[list[int], list[int], list[int]]:
    """(prompt, chosen, rejected) of a comparison."""
    prompt, chosen, rejected = (
        [token for token, label in zip(example.tokens, example.labels, strict=True) if label == part] for part in Part
    )
    return prompt, chosen, rejected


class PromptFormatter:
    """Records with a prompt become its tokens; the record goes with them, for reward functions."""

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = prompts

    def example(self, record: Record, columns: Mapping[str, str]) -> Example:
        """The example of a record. Raises Invalid, DataError."""
        column = columns.get("prompt", "prompt")
        asked, messages = self._prompts.prompt(record, column)
        tokens = self._prompts.ids(asked)
        fields: dict[str, Any] = {name: value for name, value in record.items() if name != column}
        kept = json.dumps({"prompt": asked, "messages": messages, "fields": fields}).encode()
        return Example(tokens, [Part.PROMPT] * len(tokens), kept)

    def length(self, example: Example) -> int:
        """Tokens of the prompt."""
        return len(example.tokens)

    def cut(self, example: Example, limit: int) -> Example:
        """Its last tokens: what stands right before the answer."""
        return Example(example.tokens[-limit:], example.labels[-limit:], example.record)
