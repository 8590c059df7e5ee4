"""Makes the steps of a PPO run: a rollout, then the updates with it, under the turns of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import TrainerState, get_scheduler

from trireme.planning.data_parallel import DataParallelPlan
from trireme.resources.algorithms import Ppo
from trireme.resources.tuning import TuningTraining
from trireme_trainer.hf.arguments import SCHEDULES
from trireme_trainer.metrics.parts import DATA, GENERATION, PartClock
from trireme_trainer.rank.run import Wish
from trireme_trainer.rlhf.data import Prompt
from trireme_trainer.rlhf.ppo.estimates import Total
from trireme_trainer.rlhf.ppo.model import ActorCritic, Reference
from trireme_trainer.rlhf.ppo.optimizer import PlainUpdates, Updates, ZeroUpdates, adamw
from trireme_trainer.rlhf.ppo.rollout import Rollout, Sampler, roll_out, seeds_of
from trireme_trainer.rlhf.ppo.update import Learner, Ptx, UpdateMetrics, rollout_metrics


class Steering(Protocol):
    """What a run does at the trainer's turns."""

    @property
    def parts(self) -> PartClock: ...
    def restore(self, state: TrainerState) -> None: ...
    def begin_step(self, step: int) -> None: ...
    def end_step(self, step: int) -> Wish: ...
    def report(self, step: int, logs: dict[str, float]) -> None: ...
    def save(self) -> None: ...


@dataclass(frozen=True)
class Share:
    """This rank's part of each step."""

    prompts: Callable[[int], Sequence[Prompt]]
    """Of the step that follows so many complete ones, each as often as it is answered."""
    first_sample: int
    """Number in the global batch of the first completion."""


class PpoTrainer:
    """Makes steps as one of transformers' trainers does."""

    def __init__(
        self,
        run: Steering,
        actor: ActorCritic,
        reference: Reference,
        sampler: Sampler,
        share: Share,
        how: Ppo,
        training: TuningTraining,
        plan: DataParallelPlan,
        *,
        total_steps: int,
        zero: bool,
        total: Total,
        ptx: Ptx | None,
        alive: Callable[[], None],
    ) -> None:
        """`zero`: whether the optimizer's state is shared out as the plan says."""
        self.model, self.model_wrapped = actor, actor
        self.state = TrainerState()
        self._globalstep_last_logged = 0
        self._run, self._reference, self._sampler, self._share = run, reference, sampler, share
        self._how, self._training, self._plan = how, training, plan
        self._total_steps = total_steps
        self._total, self._alive = total, alive
        self.rollout: Rollout | None = None
        """The last step's."""
        rate = training.optimizer.learning_rate or 0.0
        plain = adamw(actor, training.optimizer, rate)
        warmup = round(training.schedule.warmup_ratio * total_steps)
        # Made of the optimizer before anything wraps it: of both only the rate is read.
        self.lr_scheduler: Any = get_scheduler(SCHEDULES[training.schedule.kind], plain, warmup, total_steps)
        self._updates = self._make_updates(plain, zero)
        self.optimizer: Any = self._updates.optimizer
        self._learner = Learner(
            actor,
            self._updates,
            how,
            seed=training.seed,
            micro_batch_size=plan.micro_batch_size,
            total=total,
            ptx=ptx,
            alive=alive,
            parts=run.parts,
        )

    def _make_updates(self, optimizer: torch.optim.Optimizer, zero: bool) -> Updates:
        plan, clip = self._plan, self._training.gradient_clip
        if not plan.zero_stage or not zero:
            return PlainUpdates(self.model, optimizer, clip)
        return ZeroUpdates(
            self.model,
            optimizer,
            stage=plan.zero_stage,
            micro=plan.micro_batch_size,
            accumulation=plan.accumulation_steps,
            world_size=plan.data,
            clip=clip,
        )

    def train(self) -> None:
        """Step after step to the last, or until the run says to drain. Raises RewardFailed, and what the run raises."""
        self._run.restore(self.state)
        while self.state.global_step < self._total_steps:
            step = self.state.global_step
            self._run.begin_step(step)
            rate = float(self.lr_scheduler.get_last_lr()[0])
            found = self._step(step, rate)
            self.lr_scheduler.step()
            self.state.global_step = step + 1
            wish = self._run.end_step(step + 1)
            self._run.report(step + 1, {**found, "learning_rate": rate})
            if wish == Wish.SAVE:
                self._run.save()
            if wish == Wish.DRAIN:
                return

    def _step(self, step: int, rate: float) -> dict[str, float]:
        parts, first = self._run.parts, self._share.first_sample
        with parts.part(DATA, busy=True):
            prompts = self._share.prompts(step)
        self.model.eval()
        with parts.part(GENERATION):
            self.rollout = roll_out(
                self.model,
                self._reference,
                self._sampler,
                prompts,
                seeds_of(self._training.seed, step, first, len(prompts)),
                self._how,
                micro_batch_size=self._plan.micro_batch_size,
                total=self._total,
                alive=self._alive,
            )
        # Activations are recomputed in training mode only; without dropout it changes nothing else.
        self.model.train(self._training.recompute)
        learned = self._learner.learn(self.rollout, step, first, rate)
        return {**rollout_metrics(self.rollout, self._total), **_shown(learned)}


def _shown(learned: UpdateMetrics) -> dict[str, float]:
    return {
        "loss": learned.loss,
        "grad_norm": learned.grad_norm,
        "policyLoss": learned.policy_loss,
        "valueLoss": learned.value_loss,
        "entropy": learned.entropy,
        "updateKl": learned.approximate_kl,
        "clipFraction": learned.clip_fraction,
        "valueClipFraction": learned.value_clip_fraction,
        "ptxLoss": learned.ptx_loss,
        "updates": float(learned.updates),
    }
