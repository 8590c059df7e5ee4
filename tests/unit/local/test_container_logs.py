"""Container logs: written by line, read by tail, time and limit."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from trireme_local.node import logs
from trireme_local.node.logs import MAX_LINE_BYTES, LogOptions, LogWriter, read_log

WHOLE = LogOptions()


async def _text(path: Path, options: LogOptions = WHOLE) -> str:
    return b"".join([chunk async for chunk in read_log(path, options, lambda: False)]).decode()


async def _written(path: Path, *chunks: bytes) -> Path:
    writer = LogWriter(path)
    for chunk in chunks:
        writer.data_received(chunk)
    writer.connection_lost(None)
    return path


async def test_lines_survive_however_they_arrive(tmp_path: Path) -> None:
    path = await _written(tmp_path / "0.log", b"on", b"e\ntwo\n\nthr", b"ee")
    assert await _text(path) == "one\ntwo\n\nthree\n"


async def test_a_very_long_line_comes_back_whole(tmp_path: Path) -> None:
    line = b"x" * (3 * MAX_LINE_BYTES + 17)
    path = await _written(tmp_path / "0.log", line, b"y\nnext\n")
    assert await _text(path) == line.decode() + "y\nnext\n"


@pytest.mark.parametrize(("lines", "expected"), [(0, ""), (1, "c\n"), (2, "b\nc\n"), (9, "a\nb\nc\n")])
async def test_tail(tmp_path: Path, lines: int, expected: str) -> None:
    path = await _written(tmp_path / "0.log", b"a\nb\nc\n")
    assert await _text(path, LogOptions(tail_lines=lines)) == expected


async def test_since_timestamps_and_limit(tmp_path: Path) -> None:
    path = await _written(tmp_path / "0.log", b"abc\n")
    assert await _text(path, LogOptions(since=datetime.now(UTC) + timedelta(seconds=5))) == ""
    assert await _text(path, LogOptions(since=datetime.now(UTC) - timedelta(seconds=5))) == "abc\n"
    assert await _text(path, LogOptions(limit_bytes=2)) == "ab"
    stamp, _, text = (await _text(path, LogOptions(timestamps=True))).partition(" ")
    assert text == "abc\n"
    assert stamp.endswith("Z")


async def test_follow_ends_with_the_container_and_misses_nothing(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "0.log")
    writer.data_received(b"first\n")
    running = True

    async def read() -> str:
        chunks = read_log(tmp_path / "0.log", LogOptions(follow=True), lambda: running)
        return b"".join([chunk async for chunk in chunks]).decode()

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.05)
    writer.data_received(b"last\n")
    writer.connection_lost(None)
    running = False
    assert await reading == "first\nlast\n"


def test_options_come_from_a_query() -> None:
    options = LogOptions.from_query({"follow": "true", "tailLines": "3", "sinceTime": "2026-01-02T03:04:05Z"})
    assert (options.follow, options.tail_lines) == (True, 3)
    assert options.since == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    with pytest.raises(ValueError, match="invalid literal"):
        LogOptions.from_query({"tailLines": "many"})


async def test_follow_goes_on_in_the_fresh_file_after_a_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_LOG_BYTES", 300)
    writer = LogWriter(tmp_path / "0.log")
    running = True

    async def read() -> list[str]:
        chunks = read_log(tmp_path / "0.log", LogOptions(follow=True), lambda: running)
        return b"".join([chunk async for chunk in chunks]).decode().split()

    reading = asyncio.create_task(read())
    for number in range(12):
        writer.data_received(b"line-%d\n" % number)
        await asyncio.sleep(0.3 if number % 4 == 3 else 0)
    running = False
    assert (await reading)[-1] == "line-11"
    assert (tmp_path / "0.log.1").exists()
