"""How an agent leaves after SIGTERM."""

from types import SimpleNamespace
from typing import Any

import pytest

from trireme.protocol import AgentState, Phase, Target
from trireme.protocol.messages import DRAINED_EXIT_CODE
from trireme_trainer.agent.core import Agent


class EndedAttempt:
    """An attempt whose ranks are gone."""

    number = 1

    def __init__(self, state: AgentState) -> None:
        self.state = state

    async def stop(self) -> None:
        """Nothing is left to stop."""

    async def close(self) -> None:
        """Nothing is left to store."""


class IdleLauncher:
    async def warm_up(self) -> None:
        """No zygote."""

    async def close(self) -> None:
        """No zygote."""


@pytest.mark.parametrize(("state", "code"), [(AgentState.DRAINED, DRAINED_EXIT_CODE), (AgentState.FAILED, 0)])
async def test_an_agent_that_drained_says_so_although_the_next_attempt_was_raised_first(
    state: AgentState, code: int
) -> None:
    config = SimpleNamespace(program="pretrain", slots=2, job=SimpleNamespace(uid="uid"))
    environment: Any = SimpleNamespace(config=config, slot=1, job_file=None, scratch=None, threads_per_rank=1)
    metrics: Any = None
    agent: Any = Agent(environment, metrics)
    agent._launcher = IdleLauncher()
    agent._attempt = EndedAttempt(state)
    agent.terminate()
    agent.apply(Target(job_uid="uid", attempt=2, phase=Phase.HOLD))
    assert await agent.drive() == code
