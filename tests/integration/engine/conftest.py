from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine_gang import Gangs, TrainedRuns


@pytest.fixture(scope="session")
def gangs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gangs]:
    running = Gangs(tmp_path_factory.mktemp("gangs"))
    yield running
    running.close()


@pytest.fixture(scope="session")
def trained(gangs: Gangs, tmp_path_factory: pytest.TempPathFactory) -> TrainedRuns:
    return TrainedRuns(gangs, tmp_path_factory.mktemp("trained"))
