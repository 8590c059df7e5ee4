"""Adam's count of updates is saved and set whichever implementation Megatron-core chose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from trireme_trainer.engines.interface import EngineConfigError
from trireme_trainer.engines.megatron import adam_step

BETAS = (0.9, 0.95)


class FusedAdam(torch.optim.Optimizer):
    """Keeps its count as Transformer Engine's and Apex's do: in the group, from the first step on."""

    def __init__(self, parameters: list[torch.Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["step"] = group["step"] + 1 if "step" in group else 1
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                for name, beta, value in zip(state, BETAS, (parameter.grad, parameter.grad**2), strict=True):
                    state[name].mul_(beta).add_(value, alpha=1 - beta)
                mean, square = (
                    state[name] / (1 - beta ** group["step"]) for name, beta in zip(state, BETAS, strict=True)
                )
                parameter.sub_(group["lr"] * mean / (square.sqrt() + 1e-8))


def adamw(parameters: list[torch.Tensor], lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, betas=BETAS, weight_decay=0.0)


def train(adam: torch.optim.Optimizer, steps: range) -> None:
    for number in steps:
        for group in adam.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.sin(torch.arange(4.0) + number)
        adam.step()


@pytest.mark.parametrize("make", [FusedAdam, adamw])
def test_a_resumed_optimizer_goes_on_as_one_that_was_not_stopped(
    make: Callable[[list[torch.Tensor], float], torch.optim.Optimizer],
) -> None:
    whole, first, second = (torch.nn.Parameter(torch.ones(4)) for _ in range(3))
    straight, stopped, resumed = make([whole], 0.1), make([first], 0.1), make([second], 0.1)
    for adam in (straight, stopped):
        adam_step.write(adam, 0)
    train(straight, range(8))
    train(stopped, range(3))
    assert adam_step.read(stopped) == 3

    adam_step.write(resumed, 0)
    adam_step.forget(resumed)
    second.data.copy_(first.data)
    for name in ("exp_avg", "exp_avg_sq"):
        resumed.state[second][name].copy_(stopped.state[first][name])
    adam_step.write(resumed, 3)
    train(resumed, range(3, 8))
    assert adam_step.read(resumed) == adam_step.read(straight) == 8
    assert torch.allclose(second, whole, atol=1e-7)


def test_an_optimizer_whose_count_is_not_known_is_refused() -> None:
    other = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(EngineConfigError, match="SGD"):
        adam_step.write(other, 0)
