"""Records for trying things out from text that every computer has: the functions of Python's standard library."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator

STDLIB_URI = "python://stdlib"
FIELDS = ("name", "signature", "docstring", "other", "source")


def function_records(source: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, record) of each documented function of a module, in the order of its source. Raises SyntaxError.

    name; signature, such as `def dump(obj, fp):`; docstring, its first paragraph in one line; other, the docstring of
    another function of the module; source, the function whole. A module in which no two docstrings differ has none.
    """
    tree, lines = ast.parse(source), source.splitlines(keepends=True)
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    nodes.sort(key=lambda node: node.lineno)
    documented = [(node, doc) for node in nodes if (doc := _first_paragraph(node))]
    for place, (node, doc) in enumerate(documented):
        following = [*documented[place + 1 :], *documented[:place]]
        other = next((text for _, text in following if text != doc), None)
        if other is not None:
            yield (
                node.lineno,
                {
                    "name": node.name,
                    "signature": f"def {node.name}({ast.unparse(node.args)}):",
                    "docstring": doc,
                    "other": other,
                    "source": textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno])),
                },
            )


def _first_paragraph(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
