"""What is made of the standard library's functions, to try things out with."""

from pathlib import Path

import pytest
import yaml

from trireme_trainer.data.sources import Source, SourceConfig, training_files
from trireme_trainer.data.stdlib_records import FIELDS, documented_functions, function_records

LINE = Path(__file__).parents[3] / "examples" / "line"
ONE = '''
def plain(a): pass


def one(a, *, b=2):
    """Do one
    thing.

    And nothing else.
    """


class C:
    async def two(self):
        "Do another."


def three():
    "Do one thing."
'''
OTHER = "def far():\n    'Look far.'\n\ndef one_again():\n    'Do one thing.'\n"
Records = list[list[tuple[int, dict[str, str]]]]


def records_of(*modules: str) -> Records:
    return list(function_records([documented_functions(module) for module in modules]))


def texts(found: Records, field: str) -> list[list[str]]:
    return [[record[field] for _, record in module] for module in found]


def test_documented_functions_become_records() -> None:
    (found,) = records_of(ONE)
    assert [line for line, _ in found] == [5, 14, 18]
    assert all(tuple(record) == FIELDS for _, record in found)
    first, second, _ = (record for _, record in found)
    assert (first["name"], first["signature"]) == ("one", "def one(a, *, b=2):")
    assert first["docstring"] == "Do one thing."
    assert first["source"].startswith("def one(a, *, b=2):\n")
    assert second["signature"] == "def two(self):"
    with pytest.raises(SyntaxError):
        documented_functions("def (")


def test_the_other_docstring_is_of_another_module_and_not_the_functions_own() -> None:
    found = records_of(ONE, OTHER)
    own, other = texts(found, "docstring"), texts(found, "other")
    assert all(text in own[1] for text in other[0])
    assert all(text in own[0] for text in other[1])
    assert all(a != b for mine, theirs in zip(own, other, strict=True) for a, b in zip(mine, theirs, strict=True))
    assert other[1][1] == "Do another.", "all else in the other module is its own"


def test_the_other_docstring_depends_on_the_functions_source_alone_and_is_spread_over_the_choices() -> None:
    many = "".join(f"def f{number}():\n    'Do {number}.'\n" for number in range(200))
    first, again = records_of(many, ONE), records_of(many + "\ndef g():\n    'More.'\n", ONE)
    assert first[0] == again[0][:-1], "what stands beside a function changes nothing"
    chosen = texts(first, "other")[0]
    assert {text: chosen.count(text) > 40 for text in chosen} == {"Do one thing.": True, "Do another.": True}


def test_a_module_alone_takes_the_other_docstring_from_itself() -> None:
    for modules in ((ONE,), (ONE, "import json\n")):
        assert texts(records_of(*modules), "other")[0] == [
            "Do another.",
            "Do one thing.",
            "Do another.",
        ], "the first one's docstring is the third one's too"
    assert records_of('def one():\n    "Same."\n\ndef two():\n    "Same."\n') == [[]]


def test_no_stage_of_the_line_learns_from_a_held_out_module(tmp_path: Path) -> None:
    learned, held_out = set(), set()
    for path in sorted(LINE.glob("[123]-*.yaml")):
        data = yaml.safe_load(path.read_text())["spec"]["data"]
        sources, validation = (
            [
                Source(SourceConfig(uri=source["uri"], include=tuple(source["include"])), None, tmp_path)  # type: ignore[arg-type] # no store is asked
                for source in found
            ]
            for found in (data["sources"], data["validation"]["sources"])
        )
        for names, files in zip((learned, held_out), training_files(sources, validation), strict=True):
            names |= {file.identity for chosen in files for file in chosen}
    assert len(learned) > 100
    assert len(held_out) > 20
    assert not learned & held_out
