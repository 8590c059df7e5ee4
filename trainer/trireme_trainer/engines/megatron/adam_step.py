"""The count of updates behind Adam's bias correction, wherever an implementation keeps it.

torch's AdamW has it in each parameter's state. FusedAdam of Transformer Engine and of Apex, which Megatron-core takes
where one of them can be imported, has it in each parameter group.
"""

from __future__ import annotations

import torch

from trireme_trainer.engines.interface import EngineConfigError


def in_groups(adam: torch.optim.Optimizer) -> bool:
    """Whether the count is in the groups. Raises EngineConfigError for an optimizer of which that is not known."""
    if isinstance(adam, torch.optim.AdamW):
        return False
    if type(adam).__name__ == "FusedAdam":
        return True
    raise EngineConfigError(
        f"Megatron-core chose {type(adam).__module__}.{type(adam).__qualname__}, whose step count is not known"
    )


def read(adam: torch.optim.Optimizer) -> int:
    """Updates counted so far."""
    if in_groups(adam):
        steps = {int(group["step"]) for group in adam.param_groups if group["params"] and "step" in group}
    else:
        steps = {int(state["step"].item()) for state in adam.state.values()}
    return steps.pop() if steps else 0


def write(adam: torch.optim.Optimizer, step: int) -> None:
    """Make the moments exist and set the count.

    Megatron-core 0.16 hands all parameters of torch's AdamW one shared counter on load, which torch then advances once
    per parameter; so checkpoints go through here instead.
    """
    grouped = in_groups(adam)
    for group in adam.param_groups:
        if grouped:
            group["step"] = step
        for parameter in group["params"]:
            state = adam.state[parameter]
            if "exp_avg" not in state:
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            if not grouped:
                # On the parameter's device: the fused kernel reads it there.
                state["step"] = torch.tensor(float(step), dtype=torch.float32, device=parameter.device)


def forget(adam: torch.optim.Optimizer) -> None:
    """Remove counters beside the moments, where Megatron-core's load path cannot see them."""
    for state in adam.state.values():
        state.pop("step", None)
