"""The classes of task classification: as the manifest lists them, or as they are found in the examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trireme_trainer.data.errors import DataError
from trireme_trainer.data.examples import Example, Invalid, Record, TextTokenizer, text_of

MOST_CLASSES = 1000
"""More found in the examples are taken for text in the wrong column. A judgement."""


class LabelsUnusable(DataError):
    """The labels of all examples together make no classification."""

    reason = "LabelsUnusable"
    retryable = False


class Classes:
    """Gives every class a number; the final ones are known when all examples were read."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        """`names`: all classes in order; without them they are found."""
        self._given = bool(names)
        self._numbers: dict[str | int, int] = {name: number for number, name in enumerate(names)}

    def number(self, label: Any) -> int:
        """The number of a label, which is a name or a number of a class. Raises Invalid."""
        if isinstance(label, bool) or not isinstance(label, str | int):
            raise Invalid(f"the label is {type(label).__name__}, and neither the name nor the number of a class")
        return self._of_given(label) if self._given else self._found(label)

    def _of_given(self, label: str | int) -> int:
        count = len(self._numbers)
        if isinstance(label, int):
            if not 0 <= label < count:
                raise Invalid(f"label {label} is none of the {count} classes of data.labels, 0 to {count - 1}")
            return label
        if label not in self._numbers:
            raise Invalid(f"label {label!r} is not in data.labels ({', '.join(map(str, self._numbers))})")
        return self._numbers[label]

    def _found(self, label: str | int) -> int:
        if (isinstance(label, str) and not label.strip()) or (isinstance(label, int) and label < 0):
            raise Invalid(f"label {label!r} names no class")
        first = next(iter(self._numbers), label)
        if type(first) is not type(label):
            raise Invalid(f"label {label!r} is of another type than {first!r} of a line before it")
        if label not in self._numbers and len(self._numbers) == MOST_CLASSES:
            raise Invalid(f"label {label!r} is a class more than {MOST_CLASSES}; list so many in data.labels")
        return self._numbers.setdefault(label, len(self._numbers))

    def settle(self) -> tuple[list[str], list[int]]:
        """(names in the order of the final numbers, final number of each that was given out). Raises LabelsUnusable."""
        labels = list(self._numbers) if self._given else sorted(self._numbers, key=lambda label: (str(label), label))
        if not self._given and labels and isinstance(labels[0], int):
            labels.sort(key=int)
            missing = next((number for number, label in enumerate(labels) if label != number), None)
            if missing is not None:
                raise LabelsUnusable(f"the labels are numbers, and {missing} is none of them; name all in data.labels")
        if len(labels) < 2:
            raise LabelsUnusable(f"every example has the label {labels[0]!r}; a classifier needs two classes or more")
        place = {label: number for number, label in enumerate(labels)}
        return [str(label) for label in labels], [place[label] for label in self._numbers]


class ClassFormatter:
    """Turns records of text and label into examples with one label each, the number of the class."""

    def __init__(self, tokenizer: TextTokenizer, classes: Classes) -> None:
        self._tokenizer = tokenizer
        self._classes = classes

    def example(self, record: Record, columns: Any) -> Example:
        """The example of a record, with the special tokens that the tokenizer puts around a text. Raises Invalid."""
        text, column = text_of(record, columns.get("text", "text")), columns.get("label", "label")
        if column not in record:
            raise Invalid(f"no field {column!r}; it has {', '.join(map(repr, record))}")
        tokens = list(self._tokenizer(text)["input_ids"])
        return Example(tokens, [self._classes.number(record[column])])

    def length(self, example: Example) -> int:
        """Tokens that the model has to take in at once."""
        return len(example.tokens)

    def cut(self, example: Example, limit: int) -> Example:
        """Its first `limit` tokens."""
        return Example(example.tokens[:limit], example.labels)
