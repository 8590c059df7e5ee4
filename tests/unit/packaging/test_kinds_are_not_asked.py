"""Nothing asks which kind it deals with: what is a kind's own comes from its KindInfo."""

import ast
from collections.abc import Iterator
from pathlib import Path

from trireme.resources import all_kinds

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("api", "operator", "storage", "trainer", "serving", "local", "cli")
OF_THE_KINDS = ROOT / "api" / "trireme" / "resources"
NAMES = {name for info in all_kinds() for name in (info.kind, info.plural, info.singular, *info.short_names)}


def named(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every string that is the name of a kind; docstrings say more than a name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in NAMES:
            yield node.lineno, node.value


def test_no_kind_is_named_outside_the_kinds_own_modules() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if OF_THE_KINDS not in path.parents]
    found = [f"{path.relative_to(ROOT)}:{line}: {text}" for path in files for line, text in named(path.read_text())]
    assert len(files) > 100
    assert found == []


def test_a_branch_on_a_kind_is_found() -> None:
    assert list(named("if job.kind == 'PretrainJob':\n    pass\n")) == [(1, "PretrainJob")]
    assert list(named("match job.kind:\n    case 'FineTuneJob': pass\n")) == [(2, "FineTuneJob")]
