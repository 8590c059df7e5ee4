"""docs/conditions.md names every reason that the code gives."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "conditions.md").read_text()
# What an agent reports as the reason of a problem; CamelCase words given to these constructors or fields.
TRAINER_REASON = re.compile(
    r'(?:StoreError|InputsProblem|ResumeProblem)\(\s*(?:reason=)?"([A-Z]\w+)"|^\s*reason = "([A-Z]\w+)"', re.M
)
OPERATOR_REASON = re.compile(r'restarts\.fail\(\s*s,\s*"([A-Z]\w+)"')
NOT_A_CONDITION = {
    "ObjectNotFound",  # each caller turns it into the reason that fits
    "Cancelled",  # the pod is being told to do something else
    "False",  # a status that stands beside another
}


def reasons(folder: str, pattern: re.Pattern[str]) -> set[str]:
    texts = (path.read_text() for path in (ROOT / folder).rglob("*.py"))
    found = {word for text in texts for match in pattern.findall(text) for word in _words(match)}
    assert found, f"no reason found in {folder}: the pattern no longer fits the code"
    return found - NOT_A_CONDITION


def _words(match: str | tuple[str, ...]) -> set[str]:
    return {match} if isinstance(match, str) else {word for word in match if word}


@pytest.mark.parametrize(
    ("folder", "pattern"),
    [
        ("trainer/trireme_trainer", TRAINER_REASON),
        ("storage/trireme_storage", TRAINER_REASON),
        ("operator/trireme_operator", OPERATOR_REASON),
    ],
)
def test_every_reason_in_the_code_is_on_the_page(folder: str, pattern: re.Pattern[str]) -> None:
    missing = {reason for reason in reasons(folder, pattern) if not re.search(rf"\b{reason}\b", PAGE)}
    assert not missing


SERVING_PAGE = (ROOT / "docs" / "inferenceservice.md").read_text()
UNUSABLE = re.compile(r'Unusable\(\s*"([A-Z]\w+)"|_fail\("([A-Z]\w+)"|_refuse\(source, "([A-Z]\w+)"')
FINDING = re.compile(r'"(?:True|False|Unknown)", "([A-Z]\w+)"|return "([A-Z]\w+)", f?"|Obstacle\("([A-Z]\w+)"')
PLAIN = {"Valid", "Verified", "NoneWanted", "Loaded", "NotAccepted", "Serving"}
"""Reasons of a condition that is as it should be, or of one that another explains."""


@pytest.mark.parametrize(
    ("folder", "pattern"), [("serving/trireme_serving", UNUSABLE), ("operator/trireme_operator/services", FINDING)]
)
def test_every_reason_of_a_service_is_on_its_page(folder: str, pattern: re.Pattern[str]) -> None:
    missing = {reason for reason in reasons(folder, pattern) if not re.search(rf"\b{reason}\b", SERVING_PAGE)}
    assert missing <= PLAIN
