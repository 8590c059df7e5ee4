"""How a library's trainer is steered: the job's order of rows, the job's saves, and what happens between steps."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from functools import cache, wraps
from typing import Any, Protocol

from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging as transformers_logging

from trireme_trainer.metrics.parts import DATA, FORWARD_BACKWARD, OPTIMIZER, PartClock
from trireme_trainer.rank.run import Wish


class Steering(Protocol):
    """What a run does at the trainer's turns."""

    @property
    def updates_per_step(self) -> int: ...
    @property
    def stopped(self) -> bool: ...
    @property
    def parts(self) -> PartClock: ...
    def fetching(self) -> None: ...
    def sampler(self) -> Sampler[int]: ...
    def restore(self, state: TrainerState) -> None: ...
    def begin_step(self, step: int) -> None: ...
    def end_step(self, step: int) -> Wish: ...
    def report(self, step: int, logs: dict[str, float]) -> None: ...
    def save(self) -> None: ...


class StepTrainer(Protocol):
    """What a run needs of what makes its steps: one of transformers' trainers, or what behaves as they do.

    train() makes a step after another until max_steps, or until end_step() says to drain. It calls the run: restore()
    once model and optimizer are there, begin_step() and end_step() around each step, fetching() before the first where
    rows are fetched earlier, report() with the step's `loss`, `grad_norm` and `learning_rate`, and save() where
    end_step() asked for it. It times its parts by the run's `parts`.
    """

    model: Any
    model_wrapped: Any
    optimizer: Any
    lr_scheduler: Any
    state: TrainerState
    _globalstep_last_logged: int
    """The logged loss is a mean over the steps since then."""

    def train(self) -> Any: ...


@cache
def steered(library: type[Any]) -> type[Any]:
    """A trainer of transformers or trl that takes a run as its first argument and is steered by it."""

    class Steered(library):  # type: ignore[misc] # the library has no types
        def __init__(self, run: Steering, **how: Any) -> None:
            self._run = run
            super().__init__(**how, callbacks=[Steps(run)])
            self.remove_callback(PrinterCallback)  # each step's line is written by report()

        def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
            return self._run.sampler()

        def get_batch_samples(self, epoch_iterator: Iterator[Any], *how: Any) -> Any:
            self._run.fetching()
            # The items of the rows are counted with the other ranks, which is no part of fetching them.
            return super().get_batch_samples(_timed_rows(epoch_iterator, self._run.parts), *how)

        def training_step(self, *what: Any, **how: Any) -> Any:
            with self._run.parts.part(FORWARD_BACKWARD):
                return super().training_step(*what, **how)

        def compute_loss(self, *what: Any, **how: Any) -> Any:
            with self._run.parts.part(FORWARD_BACKWARD, busy=True):
                return super().compute_loss(*what, **how)

        def _clip_grad_norm(self, model: Any) -> Any:
            with self._run.parts.part(OPTIMIZER):
                return super()._clip_grad_norm(model)

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            self._run.save()

    return Steered


def _timed_rows(rows: Iterator[Any], parts: PartClock) -> Iterator[Any]:
    while True:
        with parts.part(DATA, busy=True):
            try:
                found = next(rows)
            except StopIteration:
                return
        yield found


def time_updates(trainer: StepTrainer, parts: PartClock) -> None:
    """Have the optimizer's steps timed; with DeepSpeed its engine makes them, in the middle of the backward pass."""
    stepper = trainer.model_wrapped if hasattr(trainer.model_wrapped, "step") else trainer.optimizer
    make_step = stepper.step

    @wraps(make_step)
    def step(*what: Any, **how: Any) -> Any:
        with parts.part(OPTIMIZER):
            return make_step(*what, **how)

    stepper.step = step


class Steps(TrainerCallback):  # type: ignore[misc]
    """Between the trainer's steps."""

    def __init__(self, run: Steering) -> None:
        self._run = run
        self._logs: dict[str, float] = {}

    def _step(self, state: TrainerState) -> int | None:
        """Steps that are complete; None between two updates of one step."""
        step, updates = divmod(state.global_step, self._run.updates_per_step)
        return None if updates else step

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Weights, optimizer, schedule and step of the checkpoint, once the optimizer is made."""
        self._run.restore(state)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """An update begins."""
        if (step := self._step(state)) is not None:
            self._run.begin_step(step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Weights are those after the update; what is asked for here is done after its loss was logged."""
        if (step := self._step(state)) is not None:
            wish = self._run.end_step(step)
            control.should_save = wish == Wish.SAVE
            control.should_training_stop = control.should_training_stop or wish == Wish.DRAIN or self._run.stopped

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """The update's loss, mean over the tokens of all ranks, and what the trainer measured."""
        if logs is None or "loss" not in logs:
            return
        self._logs.update(logs)
        if (step := self._step(state)) is not None:
            self._run.report(step, self._logs)
            self._logs = {}


def quiet() -> None:
    """Keep out of every rank's log what the libraries say at each step and load."""
    transformers_logging.disable_progress_bar()
    for library in (r"torch\.distributed\.", r"transformers\."):
        warnings.filterwarnings("ignore", category=FutureWarning, module=library)
    warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler.step\(\)` before")  # restore() means it
    logging.getLogger("accelerate").setLevel(logging.WARNING)
