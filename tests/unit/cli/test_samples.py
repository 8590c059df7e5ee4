"""`trireme samples` prints what the store holds, as it stands there."""

from typing import Any

import pytest
from typer.testing import CliRunner

from trireme.checkpoints import JobKeys
from trireme.checkpoints.samples import SampleRecord, newest_attempt_wins, parse_samples
from trireme_cli import samples
from trireme_cli.main import app

KEYS = JobKeys("s3://bucket/p", "default", "aligned", "uid")


def record(step: int, attempt: int, completion: str = "fine") -> SampleRecord:
    return SampleRecord(
        step=step, attempt=attempt, prompt="How?", completion=completion, reward=0.5, rewards={"short": 1.0, "liked": 0}
    )


class Store:
    keys = KEYS

    def __init__(self, objects: dict[str, list[SampleRecord]]) -> None:
        self._objects = {key: "".join(r.to_json() + "\n" for r in records) for key, records in objects.items()}

    def list_keys(self, prefix: str) -> list[str]:
        return [key for key in self._objects if key.startswith(prefix)]

    def read(self, key: str) -> bytes:
        return self._objects[key].encode()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    store = Store(
        {
            KEYS.samples(1, 0): [record(1, 1), record(2, 1, "older"), record(2, 1, "older too")],
            KEYS.samples(2, 0): [record(2, 2, "[bold]newer[/]"), record(3, 2, "last")],
            KEYS.log(1, 0): [],
        }
    )
    monkeypatch.setattr(samples, "Cluster", lambda _: None)
    monkeypatch.setattr(samples, "find_job", lambda *_: None)
    monkeypatch.setattr(samples, "open_store", lambda *_: store)
    return lambda *arguments: CliRunner().invoke(app, ["samples", "aligned", *arguments])


def test_the_last_step_is_shown_with_its_rewards(run: Any) -> None:
    printed = run().stdout
    assert "step 3  reward 0.5  (short 1, liked 0)" in printed
    assert "How?\nlast\n" in printed
    assert "newer" not in printed


def test_a_step_that_was_made_again_is_shown_as_its_newest_attempt_made_it(run: Any) -> None:
    printed = run("--step", "2").stdout
    assert "[bold]newer[/]" in printed, "a completion is no markup"
    assert "older" not in printed


def test_all_are_printed_as_json_lines_that_are_read_back(run: Any) -> None:
    found = parse_samples(run("--all", "--json").stdout.encode())
    assert [(r.step, r.attempt) for r in found] == [(1, 1), (2, 2), (3, 2)]
    assert [r.step for r in parse_samples(run("--last", "2", "--json").stdout.encode())] == [2, 3]


def test_a_step_without_samples_is_an_error(run: Any) -> None:
    result = run("--step", "9")
    assert "no sample of aligned at step 9" in str(result.exception)


def test_of_two_attempts_only_steps_in_both_are_taken_from_the_newer() -> None:
    records = [record(1, 2), record(1, 2, "b"), record(1, 1), record(5, 1)]
    assert [(r.step, r.attempt, r.completion) for r in newest_attempt_wins(records)] == [
        (1, 2, "fine"),
        (1, 2, "b"),
        (5, 1, "fine"),
    ]
