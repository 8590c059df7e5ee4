"""Rewards of completions: rules, a user's Python under limits, sums; what fails names reward and prompt."""

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trireme.resources.rewards import Reward
from trireme_trainer.rlhf.rewards.batch import Completions, RewardSum, Weighted
from trireme_trainer.rlhf.rewards.build import build_rewards, try_rewards
from trireme_trainer.rlhf.rewards.errors import (
    RewardCrashed,
    RewardFailed,
    RewardMalformed,
    RewardNotFinite,
    RewardOutOfMemory,
    RewardRaised,
    RewardTimedOut,
    RewardUnusable,
)
from trireme_trainer.rlhf.rewards.rules import length_range, length_target, python_syntax, rule_named


def batch(*texts: str, **fields: Any) -> Completions:
    number = len(texts)
    return Completions(
        prompts=[f"prompt {n}" for n in range(number)],
        texts=texts,
        lengths=[len(text.split()) for text in texts],
        ended=[True] * number,
        messages=[None] * number,
        fields=[{name: values[n] for name, values in fields.items()} for n in range(number)],
    )


def rewards(*specs: dict[str, Any], **sources: str) -> RewardSum:
    def no_model(name: str) -> Any:
        raise AssertionError(name)

    return build_rewards([Reward.model_validate(spec) for spec in specs], sources, no_model)


@pytest.fixture
def function() -> Iterator[Any]:
    """Makes the sum of one reward function of this source."""
    made: list[RewardSum] = []

    def make(source: str, **limits: Any) -> RewardSum:
        spec = {"name": "mine", "function": {"configMap": {"name": "x"}, "timeoutSeconds": 20, **limits}}
        made.append(rewards(spec, mine=source))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(
    ("kind", "parameters", "text", "score"),
    [
        ("regex", {"pattern": r"\d+", "match": "search"}, "about 42 of them", 1),
        ("regex", {"pattern": r"\d+", "match": "full"}, "about 42 of them", 0),
        ("regex", {"pattern": r"\d+", "match": "full"}, "42", 1),
        ("jsonSchema", {"schema": {}}, "[1, 2]", 1),
        ("jsonSchema", {"schema": {}}, "[1, 2", 0),
        ("jsonSchema", {"schema": {}}, "NaN", 0),
        ("jsonSchema", {"schema": {}}, "[" * 100_000, 0),
        ("jsonSchema", {"schema": {"required": ["a"]}}, '{"a": 1}', 1),
        ("jsonSchema", {"schema": {"required": ["a"]}}, '{"b": 1}', 0),
        ("pythonSyntax", {}, "def f():\n    return 1\n", 1),
        ("pythonSyntax", {}, "return 1", 0),
        ("pythonSyntax", {}, "x = (", 0),
        ("pythonSyntax", {}, "x = '\0'", 0),
        ("pythonSyntax", {}, "-" * 100_000 + "1", 0),
        ("pythonSyntax", {}, "raise SystemExit", 1),
    ],
)
def test_a_rule_scores_what_fits_1_and_all_else_0(kind: str, parameters: Any, text: str, score: float) -> None:
    assert rule_named(kind, parameters)(text) == score


@given(st.text())
def test_python_syntax_scores_any_text_without_an_exception(text: str) -> None:
    assert python_syntax(text) in (0.0, 1.0)


def test_length_is_scored_by_a_target_or_a_range() -> None:
    target, between = length_target(10), length_range(3, 5)
    assert [target(n) for n in (10, 5, 15, 0, 20, 40)] == [1, 0.5, 0.5, 0, 0, 0]
    assert [between(n) for n in (2, 3, 5, 6)] == [0, 1, 1, 0]
    assert length_range(None, 5)(1) == length_range(3, None)(10**9) == 1


def test_the_reward_is_the_weighted_sum_and_an_empty_completion_scores_0_with_every_rule() -> None:
    total = rewards(
        {"name": "digits", "weight": 2, "regex": {"pattern": r"^\d*$"}},
        {"name": "python", "weight": 0.5, "pythonSyntax": {}},
        {"name": "short", "length": {"max": 1}},
        {"name": "json", "jsonSchema": {"schema": {}}},
    )
    try:
        scores = total.score(batch("12", "x y", "", " \n", "{}"))
    finally:
        total.close()
    assert scores.by_name == {
        "digits": [1, 0, 0, 0, 0],
        "python": [1, 0, 0, 0, 1],
        "short": [1, 0, 0, 0, 1],
        "json": [1, 0, 0, 0, 1],
    }
    assert scores.total == [4.5, 0, 0, 0, 2.5]


def test_a_function_gets_prompts_completions_and_the_other_fields_of_the_lines(function: Any) -> None:
    source = """
import os, sys
def reward(prompts, completions, answer, **fields):
    print("said by the function")
    assert "TRIREME_SECRET" not in os.environ, "the job's environment"
    assert prompts == ["prompt 0", "prompt 1"], prompts
    assert sorted(fields) == ["level"], fields
    return [float(a == c) for a, c in zip(answer, completions)]
"""
    made = function(source)
    assert made.score(batch("yes", "no", answer=["yes", "yes"], level=[1, 2])).total == [1.0, 0.0]
    assert made.score(batch("no", "no", answer=["yes", "no"], level=[1, 2])).total == [0.0, 1.0], (
        "one process serves all"
    )


def test_an_empty_completion_is_no_matter_of_a_function(function: Any) -> None:
    made = function("def reward(completions, **_):\n    assert all(completions)\n    return [5.0 for _ in completions]")
    assert made.score(batch("", "x", " ")).total == [0.0, 5.0, 0.0]
    assert made.score(batch("", "")).total == [0.0, 0.0]


THIRD = "for c in completions:\n        if c == 'bad':\n            "
FAULTS = [
    (THIRD + "raise KeyError('oh')", RewardRaised, "KeyError: 'oh'"),
    (THIRD + "raise SystemExit(3)", RewardRaised, "SystemExit: 3"),
    (THIRD + "import time; time.sleep(1000)", RewardTimedOut, "longer than 1 s"),
    (THIRD + "\n            while True: pass", RewardTimedOut, "longer than 1 s"),
    (THIRD + "x = 'x' * (1 << 30)", RewardOutOfMemory, "more than 64 MiB"),
    (THIRD + "import os; os._exit(0)", RewardCrashed, "ended with 0"),
    (THIRD + "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", RewardCrashed, "signal 11"),
    ("return [float('nan') if c == 'bad' else 1 for c in completions]", RewardNotFinite, "returned nan"),
    ("return [float('-inf') if c == 'bad' else 1 for c in completions]", RewardNotFinite, "returned -inf"),
    ("return [None if c == 'bad' else 1 for c in completions]", RewardMalformed, "NoneType"),
]


@pytest.mark.parametrize(("body", "kind", "message"), FAULTS, ids=[m for _, _, m in FAULTS])
def test_a_function_that_fails_is_an_error_with_its_name_and_the_prompt_at_fault(
    function: Any, body: str, kind: type[RewardFailed], message: str
) -> None:
    source = f"def reward(completions, **_):\n    {body}\n    return [1.0 for _ in completions]"
    made = function(source, timeoutSeconds=1, memory="64Mi")
    began = time.monotonic()
    with pytest.raises(RewardFailed) as caught:
        made.score(batch("good", "fine", "bad", "good", "bad"))
    assert type(caught.value) is kind, caught.value
    assert message in str(caught.value)
    assert str(caught.value).startswith("reward mine: ")
    assert caught.value.prompt == "prompt 2"
    assert time.monotonic() - began < 30
    assert made.score(batch("good")).total == [1.0], "the next batch is scored all the same"


@pytest.mark.parametrize(
    ("returned", "message"),
    [("[1.0]", "1 scores for 3 completions"), ("None", "NoneType and no list"), ("'abc'", "str and no list"),
     ("['a', 'b', 'c']", "as a score")],
)  # fmt: skip
def test_what_is_no_number_for_each_completion_is_refused(function: Any, returned: str, message: str) -> None:
    with pytest.raises(RewardMalformed, match=message) as caught:
        function(f"def reward(**_):\n    return {returned}").score(batch("a", "b", "c"))
    assert caught.value.prompt == "prompt 0"


def test_a_function_that_is_slow_in_all_is_not_blamed_on_one_prompt(function: Any) -> None:
    source = "import time\ndef reward(completions, **_):\n    time.sleep(0.2 * len(completions))\n    return [1.0]"
    with pytest.raises(RewardTimedOut) as caught:
        function(source, timeoutSeconds=1).score(batch(*("abcdefghijkl")))
    assert caught.value.prompt == "prompt 0"


def test_whoever_waits_for_a_function_shows_that_it_lives(function: Any) -> None:
    made, signs = function("import time\ndef reward(**_):\n    time.sleep(1.2)\n    return [1.0]"), []
    made.score(batch("x"), lambda: signs.append(time.monotonic()))
    assert max(b - a for a, b in itertools.pairwise(signs)) < 1.1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def reward(:", "SyntaxError"),
        ("import no_such_module_here", "ModuleNotFoundError"),
        ("x = 1", "defines no function"),
    ],
)
def test_a_source_that_does_not_load_is_found_before_anything_is_scored(
    function: Any, source: str, message: str
) -> None:
    with pytest.raises(RewardUnusable, match=message):
        try_rewards(function(source))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "a", "regex": {"pattern": "("}}, "is no pattern"),
        ({"name": "a", "jsonSchema": {"schema": {"type": "poem"}}}, "no JSON Schema"),
        ({"name": "a", "function": {"configMap": {"name": "x"}}}, "no source of x/reward.py"),
    ],
)
def test_a_rule_that_is_none_is_found_before_anything_is_scored(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardUnusable, match=message):
        try_rewards(rewards(spec))


def test_a_pattern_that_backtracks_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trireme_trainer.rlhf.rewards.build.RULE_SECONDS", 1.0)
    total = rewards({"name": "evil", "regex": {"pattern": r"^(a+)+$"}})
    try:
        with pytest.raises(RewardTimedOut, match="reward evil") as caught:
            total.score(batch("aaa", "a" * 64 + "!"))
    finally:
        total.close()
    assert caught.value.prompt == "prompt 1"


def test_children_of_a_function_end_with_it(function: Any) -> None:
    source = "import subprocess\np = subprocess.Popen(['sleep', '1000'])\ndef reward(**_):\n    return [p.pid]"
    made = function(source)
    pid = int(made.score(batch("x")).total[0])
    made.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _state(pid) not in ("", "Z"):
        time.sleep(0.05)
    assert _state(pid) in ("", "Z")


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def test_scores_of_scorers_are_checked_whoever_they_are() -> None:
    class Bad:
        def score(self, batch: Completions, alive: Any) -> list[float]:
            return [float("nan")] * len(batch)

        def close(self) -> None: ...

    with pytest.raises(RewardNotFinite, match="reward model"):
        RewardSum([Weighted("model", 1.0, Bad())]).score(batch("x"))
    assert json.dumps(RewardSum([]).score(batch()).total) == "[]"
