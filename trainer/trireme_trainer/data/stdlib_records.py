"""Records for trying things out from text that every computer has: the functions of Python's standard library."""

from __future__ import annotations

import ast
import hashlib
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

STDLIB_URI = "python://stdlib"
FIELDS = ("name", "signature", "docstring", "other", "source")


@dataclass(frozen=True)
class DocumentedFunction:
    """A function with a docstring."""

    line: int
    name: str
    signature: str
    """Such as `def dump(obj, fp):`."""
    docstring: str
    """Its first paragraph in one line."""
    source: str
    """The function whole."""

    @property
    def digest(self) -> int:
        """First eight bytes of the SHA-256 of the source."""
        return int.from_bytes(hashlib.sha256(self.source.encode()).digest()[:8], "big")


def documented_functions(source: str) -> list[DocumentedFunction]:
    """Those of a module, in the order of its source. Raises SyntaxError."""
    tree, lines = ast.parse(source), source.splitlines(keepends=True)
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [
        DocumentedFunction(
            line=node.lineno,
            name=node.name,
            signature=f"def {node.name}({ast.unparse(node.args)}):",
            docstring=docstring,
            source=textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno])),
        )
        for node in sorted(nodes, key=lambda node: node.lineno)
        if (docstring := _first_paragraph(node))
    ]


def function_records(modules: Sequence[Sequence[DocumentedFunction]]) -> Iterator[list[tuple[int, dict[str, str]]]]:
    """(line, record) of each function, in a list per module: name, signature, docstring, other, source.

    other is the docstring of a function of another module, which the function's digest chooses. Neighbours tell of the
    same things, often in the same words, so that of a function and two docstrings of its own module even a reader
    hardly knows which is whose. In a module that has no others beside it, other is of one of its own functions; a
    function with no docstring but its own to choose from has no record.
    """
    docstrings = [[function.docstring for function in functions] for functions in modules]
    for number, functions in enumerate(modules):
        elsewhere = [text for texts in (*docstrings[:number], *docstrings[number + 1 :]) for text in texts]
        found = []
        for function in functions:
            other = _other(function, elsewhere) or _other(function, docstrings[number])
            if other is not None:
                found.append((function.line, _record(function, other)))
        yield found


def _other(function: DocumentedFunction, choices: Sequence[str]) -> str | None:
    """The choice that the digest falls on, or the first after it that is not the function's own docstring."""
    start = function.digest % len(choices) if choices else 0
    turns = ((start + turn) % len(choices) for turn in range(len(choices)))
    return next((choices[place] for place in turns if choices[place] != function.docstring), None)


def _record(function: DocumentedFunction, other: str) -> dict[str, str]:
    values = (function.name, function.signature, function.docstring, other, function.source)
    return dict(zip(FIELDS, values, strict=True))


def _first_paragraph(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
