"""A store and gangs of agents for the trainer's tests."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gang_harness import Gang, S3Server, make_job, make_spec, s3_server

from trireme.protocol import JobConfig

_blocks = itertools.count(os.getpid() % 100 + 50)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    with s3_server(tmp_path / "s3") as running:
        yield running


@pytest.fixture
def make_gang(tmp_path: Path, server: S3Server) -> Iterator[Callable[..., Gang]]:
    gangs: list[Gang] = []

    def make(uid: str | None = None, name: str = "job", config: JobConfig | None = None, **changes: Any) -> Gang:
        config = config or make_job(server, make_spec(**changes), name=name, uid=uid)
        gang = Gang(config, tmp_path / f"gang-{len(gangs)}", server, next(_blocks) % 200 + 10)
        gang.settings = gang.settings.model_copy(
            update={"checkpoint_interval_steps": config.spec["checkpoint"].get("intervalSteps")}
        )
        gangs.append(gang)
        return gang

    yield make
    for gang in gangs:
        gang.close()
