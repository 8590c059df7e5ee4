"""A rank's last lines reach the store, also where it was away when they were written."""

from __future__ import annotations

from pathlib import Path

from trireme_trainer.agent.logs import RankLog


def test_a_tail_is_offered_until_it_is_stored(tmp_path: Path) -> None:
    log = RankLog(tmp_path / "rank-0.log", 0)
    log.write(b"Traceback\n")
    first = log.unstored_tail()
    assert first is not None
    assert log.unstored_tail() == first, "a failed put must not lose it"
    log.write(b"more\n")
    log.stored(first[1])
    second = log.unstored_tail()
    assert second is not None
    assert second[0] == b"Traceback\nmore\n"
    log.stored(second[1])
    assert log.unstored_tail() is None
