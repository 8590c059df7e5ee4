"""The outer loop of pretraining: restore, train, validate, save, drain, export. Collective, the same on every rank."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trireme.protocol import Progress, Section, Settings
from trireme_trainer.agent.messages import Inputs
from trireme_trainer.agent.programs import PRETRAIN_WEIGHTS
from trireme_trainer.data.dataset import TOKENIZER_DIRECTORY, TokenDataset
from trireme_trainer.data.order import SampleOrder, samples_digest, share_of
from trireme_trainer.engines.interface import CheckpointFormatError, Engine, StepResult
from trireme_trainer.metrics.parts import DATA
from trireme_trainer.metrics.throughput import Peak, Throughput
from trireme_trainer.pretrain.config import PretrainConfig
from trireme_trainer.pretrain.continuity import training_record
from trireme_trainer.rank.errors import NaNLoss, RestoreFailed
from trireme_trainer.rank.run import Channel, Outcome, Place, Run, Wish

log = logging.getLogger(__name__)


@dataclass
class State:
    """What a checkpoint keeps beside weights and optimizer."""

    first_loss: float | None = None
    last_loss: float | None = None
    validation_loss: float | None = None
    validation_step: int | None = None
    """After which step that loss was measured."""


class Pretraining:
    """One rank's run."""

    def __init__(
        self,
        config: PretrainConfig,
        engine: Engine,
        channel: Channel,
        place: Place,
        inputs: Inputs,
        settings: Settings,
        peak: Peak | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._engine = engine
        self._channel = channel
        self._place = place
        self._inputs = inputs
        self._clock = clock
        self._run = Run(channel, place, engine, settings, config.device, clock)
        training = config.spec.training
        self._total = config.spec.total_steps
        self._tokens_per_step = training.global_batch_size * config.spec.data.sequence_length
        directory = Path(inputs.dataset_directory)
        self._dataset_digest = "sha256:" + directory.name
        self._dataset = TokenDataset(directory, config.spec.data.sequence_length)
        self._order = SampleOrder(
            self._dataset.train_sequences, self._dataset.weights, training.seed, training.global_batch_size
        )
        self._throughput = Throughput(engine.flops_per_token, self._tokens_per_step, place.world_size, peak)
        self._state = State()
        self._progress: Progress | None = None

    # -- the run

    def run(self) -> Outcome:
        """From the resume point to the last step, or to a drain. Raises NaNLoss, RestoreFailed."""
        if self._inputs.checkpoint_directory is not None:
            self._restore(Path(self._inputs.checkpoint_directory))
        elif (start := self._inputs.weights.get(PRETRAIN_WEIGHTS.name)) is not None:
            self._start_from(Path(start))
        self._run.begin()
        wish = self._engine.agree(self._run.wish(self._engine.step))
        while self._engine.step < self._total:
            if wish == Wish.DRAIN:
                if self._run.unsaved(self._engine.step):
                    self._save()
                return Outcome.DRAINED
            if wish == Wish.SAVE:
                self._save()
            wish = self._step()
        return self._finish()

    def _step(self) -> int:
        """Train one step; what the ranks agreed on to do after it."""
        engine, step = self._engine, self._engine.step
        self._channel.enter(Section.STEP, step)
        began = self._clock()
        engine.parts.begin()
        with engine.parts.part(DATA, busy=True):
            samples = self._order.samples(step)
            mine = share_of(samples, engine.data_parallel_rank, engine.data_parallel_size)
            batch = self._dataset.train(mine)
        result = engine.train_step(batch, lambda: self._run.wish(step + 1))
        engine.parts.end()
        if result.found_nan:
            raise NaNLoss(
                f"loss {result.loss}, gradient norm {result.grad_norm} at step {step + 1} with learning rate "
                f"{result.learning_rate}"
            )
        seconds, completed_at = self._clock() - began, time.time()
        self._state.last_loss = result.loss
        if self._state.first_loss is None:
            self._state.first_loss = result.loss
        if engine.step < self._total and engine.step % self._config.spec.training.validation_interval_steps == 0:
            self._evaluate()
        self._report(result, seconds, completed_at)
        if self._place.rank == 0:
            log.info(
                "step %d/%d loss %.6f grad_norm %.6f learning_rate %.6g samples %s seconds %.3f",
                engine.step,
                self._total,
                result.loss,
                result.grad_norm,
                result.learning_rate,
                samples_digest(samples),
                seconds,
            )
        return result.agreed

    def _report(self, result: StepResult, seconds: float, completed_at: float) -> None:
        rates = self._throughput.step(seconds)
        self._progress = self._facts(
            learning_rate=result.learning_rate,
            grad_norm=result.grad_norm,
            tokens_per_second=rates.tokens_per_second,
            tflops_per_device=rates.tflops_per_device,
            mfu=rates.mfu,
            mfu_basis=rates.mfu_basis,
            step_seconds=seconds,
        )
        self._run.report(self._progress, completed_at, self._engine.parts.last, result.skew_seconds)

    def _report_end(self) -> None:
        """The last step's facts once more, as far as this attempt knows them, with the last validation's loss."""
        progress = self._progress or self._facts()
        self._run.report(progress.model_copy(update={"validation_loss": self._state.validation_loss}), 0.0)

    def _facts(self, **of_the_step: Any) -> Progress:
        step, state = self._engine.step, self._state
        return Progress(
            step=step,
            total_steps=self._total,
            tokens=step * self._tokens_per_step,
            loss=state.last_loss,
            first_loss=state.first_loss,
            validation_loss=state.validation_loss,
            **of_the_step,
        )

    def _evaluate(self) -> None:
        """Mean loss over the validation samples, shared out over the data axis."""
        training = self._config.spec.training
        share = training.global_batch_size // self._engine.data_parallel_size
        positions = self._dataset.validation_positions(training.validation_batches * training.global_batch_size)
        # Every rank needs as many samples as the others; what does not fill a row of the data axis is left out.
        rows = len(positions) // self._engine.data_parallel_size
        if rows == 0:
            return
        self._channel.enter(Section.EVALUATE, self._engine.step)
        mine = positions[self._engine.data_parallel_rank :: self._engine.data_parallel_size][:rows]
        batches = [self._dataset.validation(mine[i : i + share]) for i in range(0, rows, share)]
        self._state.validation_loss = self._engine.evaluate(batches).loss
        self._state.validation_step = self._engine.step

    def _finish(self) -> Outcome:
        """Save, validate, export. Whatever fails after the save costs no step: the next attempt goes on from there."""
        if self._run.unsaved(self._engine.step):
            self._save()
        if self._state.validation_step != self._engine.step:
            self._evaluate()
            self._report_end()
        tokenizer = Path(self._inputs.dataset_directory) / TOKENIZER_DIRECTORY

        def write(directory: Path) -> None:
            self._engine.export_hugging_face(directory, tokenizer)

        self._run.export(self._engine.step, write, self._manifest)
        return Outcome.FINISHED

    # -- checkpoints

    def _save(self) -> None:
        def write(directory: Path) -> Sequence[str]:
            return self._engine.save_local(directory, self._extra_state()).files

        step = self._engine.step
        self._run.save(step, step * self._tokens_per_step, write, self._manifest)

    def _extra_state(self) -> dict[str, Any]:
        step, state = self._engine.step, self._state
        return {
            "step": step,
            "tokens": step * self._tokens_per_step,
            "nextSample": step * self._config.spec.training.global_batch_size,
            "seed": self._config.spec.training.seed,
            "datasetDigest": self._dataset_digest,
            "modelDigest": self._config.model_digest,
            "firstLoss": state.first_loss,
            "lastLoss": state.last_loss,
            "validationLoss": state.validation_loss,
            "validationStep": state.validation_step,
        }

    def _manifest(self) -> dict[str, Any]:
        layout = self._config.layout
        return {
            "step": self._engine.step,
            "tokens": self._engine.step * self._tokens_per_step,
            "modelDigest": self._config.model_digest,
            "datasetDigest": self._dataset_digest,
            "began": self._run.began(),
            "layout": {
                "tensor": layout.tensor,
                "pipeline": layout.pipeline,
                "data": layout.data,
                "context": layout.context,
            },
            "state": {
                **self._extra_state(),
                "totalSteps": self._total,
                "training": training_record(self._config),
            },
        }

    def _start_from(self, directory: Path) -> None:
        """Take weights, and nothing else, from where the spec says. Raises RestoreFailed."""
        self._channel.enter(Section.RESTORE, 0)
        try:
            self._engine.start_from(directory)
        except CheckpointFormatError as error:
            raise RestoreFailed(f"weights to start from: {error}") from error

    def _restore(self, directory: Path) -> None:
        """Verify, then load. Raises RestoreFailed."""
        manifest = self._run.verified(directory)
        try:
            loaded = self._engine.load_local(directory)
        except CheckpointFormatError as error:
            raise RestoreFailed(str(error)) from error
        if not loaded.step == manifest.step == self._engine.step:
            raise RestoreFailed(
                f"checkpoint holds step {loaded.step}, its manifest {manifest.step}, "
                f"the engine is at {self._engine.step}"
            )
        state, own = dict(loaded.extra_state), self._extra_state()
        same = ("nextSample", "seed", "datasetDigest", "modelDigest", "tokens")
        self._run.restored(loaded.step, state, {name: own[name] for name in same})
        self._state = State(*map(state.get, ("firstLoss", "lastLoss", "validationLoss", "validationStep")))
        log.info("restored step %d: %s", loaded.step, json.dumps(state))
