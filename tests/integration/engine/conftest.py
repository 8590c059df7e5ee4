from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_gang import Gangs, Layout, Seen


class TrainedRuns:
    """25 steps of the common configuration per layout, run once for all tests, saved after step 12."""

    steps = 25
    saved_step = 12

    def __init__(self, gangs: Gangs, folder: Path) -> None:
        self._gangs = gangs
        self._folder = folder
        self._runs: dict[Layout, Seen] = {}

    def of(self, layout: Layout) -> Seen:
        if layout not in self._runs:
            directory = self._folder / "-".join(map(str, layout))
            actions = [
                {"do": "train", "steps": self.saved_step},
                {"do": "save", "directory": str(directory)},
                {"do": "train", "steps": self.steps - self.saved_step},
            ]
            self._runs[layout] = self._gangs.run(layout, actions)
        return self._runs[layout]


@pytest.fixture(scope="session")
def gangs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gangs]:
    running = Gangs(tmp_path_factory.mktemp("gangs"))
    yield running
    running.close()


@pytest.fixture(scope="session")
def trained(gangs: Gangs, tmp_path_factory: pytest.TempPathFactory) -> TrainedRuns:
    return TrainedRuns(gangs, tmp_path_factory.mktemp("trained"))
