"""What is made of the standard library's functions, to try things out with."""

import pytest

from trireme_trainer.data.stdlib_records import FIELDS, function_records

MODULE = '''
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


def test_documented_functions_become_records_with_another_functions_docstring() -> None:
    found = list(function_records(MODULE))
    assert [line for line, _ in found] == [5, 14, 18]
    assert all(tuple(record) == FIELDS for _, record in found)
    first, second, third = (record for _, record in found)
    assert (first["name"], first["signature"]) == ("one", "def one(a, *, b=2):")
    assert (first["docstring"], first["other"]) == ("Do one thing.", "Do another.")
    assert first["source"].startswith("def one(a, *, b=2):\n")
    assert (second["signature"], second["other"]) == ("def two(self):", "Do one thing.")
    assert third["other"] == "Do another.", "the first one's docstring is its own"


def test_a_module_without_two_docstrings_has_no_record() -> None:
    assert list(function_records('def one():\n    "Same."\n\ndef two():\n    "Same."\n')) == []
    with pytest.raises(SyntaxError):
        list(function_records("def ("))
