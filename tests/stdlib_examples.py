"""Examples for fine-tuning from real text that every computer has: the standard library's functions."""

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

STDLIB = Path(json.__file__).parent.parent


def functions(*modules: str) -> Iterator[tuple[str, str]]:
    """(signature, first paragraph of the docstring) of the documented functions of modules."""
    for module in modules:
        for node in ast.walk(ast.parse((STDLIB / module).read_text())):
            doc = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
            if doc and isinstance(node, ast.FunctionDef):
                yield f"def {node.name}({ast.unparse(node.args)}):", inspect.cleandoc(doc).split("\n\n")[0]


def write_examples(path: Path, *modules: str) -> int:
    """Instruction records: from a signature to its docstring; how many."""
    lines = [
        json.dumps({"instruction": "Describe this function.", "input": signature, "output": re.sub(r"\s+", " ", doc)})
        for signature, doc in functions(*modules)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return len(lines)


def write_comparisons(path: Path, *modules: str, shouted: bool = False) -> int:
    """Comparison records: a signature, its own docstring preferred to another function's, or to itself in capitals
    (`shouted`), which a model learns to tell in seconds; how many.
    """
    found = [(signature, re.sub(r"\s+", " ", doc)) for signature, doc in functions(*modules)]
    others = [doc.upper() for _, doc in found] if shouted else [doc for _, doc in [*found[1:], found[0]]]
    lines = [
        json.dumps({"prompt": f"{signature}\n", "chosen": doc, "rejected": other})
        for (signature, doc), other in zip(found, others, strict=True)
        if doc != other
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return len(lines)


def write_prompts(path: Path, *modules: str) -> int:
    """Prompt records: a signature, and the function's name beside it; how many."""
    lines = [
        json.dumps({"prompt": f"{signature}\n", "name": signature[4 : signature.index("(")]})
        for signature, _ in functions(*modules)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return len(lines)
