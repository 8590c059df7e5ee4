"""From records to what is trained: the tokens of an example and which of them count in the loss.

Loss is on what the model is to answer: the output, the completion, the assistant's turns. Prompt and answer are
tokenised apart, as they meet when the model is served; a chat is rendered whole by its template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from trireme_trainer.data.errors import DataError

IGNORED = -100
"""Label of a token that does not count (torch's cross entropy)."""
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
"""Taori et al. 2023 (Stanford Alpaca)."""

Record = Mapping[str, Any]
Message = dict[str, Any]
"""role and content, and of a tool's use what templates know: tool_calls, tool_call_id, name."""
TOOL_FIELDS = ("tool_calls", "tool_call_id", "name")


class ExampleInvalid(DataError):
    """A record does not fit the task; the message names the file and line."""

    reason = "ExampleInvalid"
    retryable = False


class ChatTemplateUnsuitable(DataError):
    """There is no chat template, or what it renders cannot be divided into turns."""

    reason = "ChatTemplateUnsuitable"
    retryable = False


class Invalid(ValueError):
    """What is wrong with a record."""


@dataclass(frozen=True)
class Example:
    """`labels[i]` is `tokens[i]` where the token counts in the loss, else IGNORED; of a text to classify there is one
    label, the number of its class."""

    tokens: list[int]
    labels: list[int]
    record: bytes = b""
    """What else is kept of it."""


class ExampleMaker(Protocol):
    """From the records of one task to examples."""

    def example(self, record: Record, columns: Mapping[str, str]) -> Example: ...
    def length(self, example: Example) -> int: ...
    def cut(self, example: Example, limit: int) -> Example: ...


class TextTokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    eos_token_id: int
    chat_template: str | None

    def __call__(self, text: str, **how: Any) -> Mapping[str, Any]: ...
    def apply_chat_template(self, messages: list[Message], **how: Any) -> str: ...


def text_of(record: Record, column: str, *, empty: bool = False) -> str:
    """The text in a field. Raises Invalid."""
    if column not in record:
        raise Invalid(f"no field {column!r}; it has {', '.join(map(repr, record)) or 'none'}")
    value = record[column]
    if not isinstance(value, str):
        raise Invalid(f"field {column!r} is {type(value).__name__} and not text")
    if not empty and not value.strip():
        raise Invalid(f"field {column!r} is empty")
    return value


class Formatter:
    """Turns the records of one task into examples."""

    def __init__(self, task: str, tokenizer: TextTokenizer, chat_template: str | None = None) -> None:
        """Raises ChatTemplateUnsuitable when task chat has no template."""
        self._tokenizer = tokenizer
        self._template = chat_template or tokenizer.chat_template
        if task == "chat" and not self._template:
            raise ChatTemplateUnsuitable(
                "the base model's tokenizer has no chat template; give one in data.chatTemplate"
            )
        makers: dict[str, Callable[[Record, Mapping[str, str]], Example]] = {
            "instruction": self._instruction,
            "completion": self._completion,
            "chat": self._chat,
        }
        self._make = makers[task]

    def example(self, record: Record, columns: Mapping[str, str]) -> Example:
        """The example of a record; `columns` maps the task's names to the record's. Raises Invalid, DataError."""
        made = self._make(record, columns)
        if all(label == IGNORED for label in made.labels[1:]):
            raise Invalid("no token of it counts in the loss")
        return made

    def length(self, example: Example) -> int:
        """Tokens that the model has to take in at once."""
        return len(example.tokens)

    def cut(self, example: Example, limit: int) -> Example:
        """Its first `limit` tokens. Raises Invalid when none of them counts."""
        cut = Example(example.tokens[:limit], example.labels[:limit])
        if all(label == IGNORED for label in cut.labels[1:]):
            raise Invalid(f"its prompt alone fills the {limit} tokens of data.sequenceLength")
        return cut

    def _ids(self, text: str) -> list[int]:
        return cast(list[int], self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _answered(self, prompt: str, answer: str) -> Example:
        asked, given = self._ids(prompt), [*self._ids(answer), self._tokenizer.eos_token_id]
        return Example([*asked, *given], [*[IGNORED] * len(asked), *given])

    def _instruction(self, record: Record, columns: Mapping[str, str]) -> Example:
        instruction = text_of(record, columns.get("instruction", "instruction"))
        answer = text_of(record, columns.get("output", "output"))
        column = columns.get("input", "input")
        given = text_of(record, column, empty=True) if record.get(column) is not None else ""
        form = WITH_INPUT if given.strip() else WITHOUT_INPUT
        return self._answered(form.format(instruction=instruction, input=given), answer)

    def _completion(self, record: Record, columns: Mapping[str, str]) -> Example:
        column = columns.get("text", "text")
        if column in record:
            tokens = [*self._ids(text_of(record, column)), self._tokenizer.eos_token_id]
            return Example(tokens, list(tokens))
        prompt = text_of(record, columns.get("prompt", "prompt"))
        return self._answered(prompt, text_of(record, columns.get("completion", "completion")))

    def _chat(self, record: Record, columns: Mapping[str, str]) -> Example:
        messages = messages_of(record, columns.get("messages", "messages"))
        if messages[-1]["role"] != "assistant":
            raise Invalid(f"the last message is the {messages[-1]['role']}'s and not the assistant's")
        tools = tools_of(record, columns.get("tools", "tools"))
        text = self._render(messages, tools)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        tokens, spans = cast(list[int], encoded["input_ids"]), self._answers(messages, text, tools)
        labels = [
            token if any(begin <= start < end for begin, end in spans) else IGNORED
            for token, (start, _) in zip(tokens, encoded["offset_mapping"], strict=True)
        ]
        return Example(tokens, labels)

    def _render(self, messages: list[Message], tools: list[Any] | None, *, ask: bool = False) -> str:
        return render_chat(self._tokenizer, self._template, messages, ask=ask, tools=tools)

    def _answers(self, messages: list[Message], text: str, tools: list[Any] | None) -> list[tuple[int, int]]:
        """Where in the text the assistant speaks, its ends of turn included."""
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = (
                self._render(messages[:number], tools, ask=True),
                self._render(messages[: number + 1], tools),
            )
            if not after.startswith(before) or not text.startswith(after):
                raise ChatTemplateUnsuitable(
                    "the chat template renders a turn differently once another follows, so that nobody can tell which "
                    "tokens are the assistant's; give a template of plain turns in data.chatTemplate"
                )
            spans.append((len(before), len(after)))
        return spans


def render_chat(
    tokenizer: TextTokenizer,
    template: str | None,
    messages: list[Message],
    *,
    ask: bool = False,
    tools: list[Any] | None = None,
) -> str:
    """The text of a chat; `ask`: with what comes before the assistant's next turn. Raises Invalid."""
    try:
        return tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=ask, tools=tools
        )
    except Exception as error:  # a template is a program, and may raise what it likes
        raise Invalid(f"the chat template refuses it: {error}") from error


def tools_of(record: Record, column: str) -> list[Any] | None:
    """The tools that the assistant may use: JSON schemas of functions. Raises Invalid."""
    tools = record.get(column)
    if tools is None or (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        return tools or None
    raise Invalid(f"field {column!r} is no list of tools")


def messages_of(record: Record, column: str) -> list[Message]:
    """The messages in a field. Raises Invalid."""
    value = record.get(column)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise Invalid(f"field {column!r} is no list of messages")
    found = []
    for number, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise Invalid(f"message {number} is no object of role and content")
        role, calls = text_of(message, "role"), message.get("tool_calls")
        # An assistant that calls a tool may say nothing.
        silent = message.get("content") is None and bool(calls)
        content = "" if silent else text_of(message, "content", empty=role != "assistant" or bool(calls))
        used = {name: message[name] for name in TOOL_FIELDS if message.get(name) is not None}
        found.append({"role": role, "content": content, **used})
    return found
