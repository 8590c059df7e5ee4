"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from trireme_trainer.engines.interface import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, peak: float, completed_steps: int) -> float:
    """Rate of the step after `completed_steps`: linear warm-up to `peak`, then decay (SGDR's cosine, linear, none).

    The last step of `total_steps` is taken at `min_learning_rate` when the schedule decays.
    """
    step = completed_steps + 1
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    if schedule.kind == "constant":
        return peak
    decay_steps = max(1, schedule.total_steps - schedule.warmup_steps)
    fraction = min(1.0, (step - schedule.warmup_steps) / decay_steps)
    share = 0.5 * (1.0 + math.cos(math.pi * fraction)) if schedule.kind == "cosine" else 1.0 - fraction
    return schedule.min_learning_rate + (peak - schedule.min_learning_rate) * share
