"""The outer loop of pretraining: restore, train, validate, save, drain, export. Collective, the same on every rank."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

from trireme.checkpoints import Manifest
from trireme.checkpoints.manifest import AttemptStart
from trireme.protocol import Progress, ResumePoint, Section, Settings
from trireme.protocol.base import WireModel
from trireme_trainer.agent.messages import (
    ExportedEvent,
    Inputs,
    NewSettings,
    ProgressEvent,
    SavedEvent,
    SaveFailedEvent,
)
from trireme_trainer.checkpoint.fetch import Corrupt, verify_local
from trireme_trainer.data.dataset import TOKENIZER_DIRECTORY, TokenDataset
from trireme_trainer.data.order import SampleOrder
from trireme_trainer.disk import is_full
from trireme_trainer.engines.interface import CheckpointFormatError, Engine, NonFiniteState, StepResult
from trireme_trainer.metrics.memory import peak_memory_bytes
from trireme_trainer.metrics.throughput import Peak, Throughput
from trireme_trainer.pretrain.config import PretrainConfig
from trireme_trainer.pretrain.continuity import training_record
from trireme_trainer.pretrain.errors import NaNLoss, RestoreFailed

log = logging.getLogger(__name__)


class Channel(Protocol):
    """What the loop needs of the rank's channel to its agent."""

    @property
    def drain_requested(self) -> bool: ...
    @property
    def checkpoint_busy(self) -> bool: ...
    def send(self, message: WireModel) -> None: ...
    def alive(self) -> None: ...
    def enter(self, section: Section, step: int) -> None: ...
    def expect_upload(self) -> None: ...
    def take_settings(self) -> NewSettings | None: ...


class Wish(IntEnum):
    """What a rank asks of all ranks between two steps; the largest wins."""

    GO_ON = 0
    SAVE = 1
    DRAIN = 2


class Outcome(IntEnum):
    """How the loop ended."""

    FINISHED = 0
    DRAINED = 1


@dataclass(frozen=True)
class Place:
    """Where this rank stands and writes."""

    rank: int
    local_rank: int
    local_world_size: int
    world_size: int
    save_directory: Path
    resume_from: ResumePoint | None = None
    """As recorded for this attempt."""


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
        self._settings = settings
        self._clock = clock
        training = config.spec.training
        self._total = config.spec.total_steps
        self._tokens_per_step = training.global_batch_size * config.spec.data.sequence_length
        directory = Path(inputs.dataset_directory)
        self._dataset_digest = "sha256:" + directory.name
        self._dataset = TokenDataset(directory, config.spec.data.sequence_length)
        self.order = SampleOrder(
            self._dataset.train_sequences, self._dataset.weights, training.seed, training.global_batch_size
        )
        self._throughput = Throughput(engine.flops_per_token, self._tokens_per_step, place.world_size, peak)
        self._state = State()
        self._progress: Progress | None = None
        self._saved_step: int | None = None
        self._saved_at = clock()

    # -- the run

    def run(self) -> Outcome:
        """From the resume point to the last step, or to a drain. Raises NaNLoss, RestoreFailed."""
        if self._inputs.checkpoint_directory is not None:
            self._restore(Path(self._inputs.checkpoint_directory))
        elif self._inputs.start_directory is not None:
            self._start_from(Path(self._inputs.start_directory))
        self._saved_at = self._clock()
        wish = self._engine.agree(self._wish(self._engine.step))
        while self._engine.step < self._total:
            if wish == Wish.DRAIN:
                if self._engine.step > (self._saved_step or 0):
                    self._save()
                return Outcome.DRAINED
            if wish == Wish.SAVE:
                self._save()
            wish = self._step()
        return self._finish()

    def _wish(self, step: int) -> Wish:
        """What this rank wants when `step` steps are complete."""
        if (changed := self._channel.take_settings()) is not None:
            self._settings = changed.settings
        if self._channel.drain_requested:
            return Wish.DRAIN
        return Wish.SAVE if self._place.rank == 0 and self._save_due(step) else Wish.GO_ON

    def _save_due(self, step: int) -> bool:
        """Rank 0 decides for all; a save waits until the one before is in the store."""
        saved = self._saved_step or 0
        if step <= saved or self._channel.checkpoint_busy:
            return False
        every_steps, every_seconds = (
            self._settings.checkpoint_interval_steps,
            self._settings.checkpoint_interval_seconds,
        )
        if every_steps and step // every_steps > saved // every_steps:
            return True
        return bool(every_seconds) and self._clock() - self._saved_at >= (every_seconds or 0)

    def _step(self) -> int:
        """Train one step; what the ranks agreed on to do after it."""
        engine, step = self._engine, self._engine.step
        self._channel.enter(Section.STEP, step)
        began = self._clock()
        samples = self.order.samples_of(step, engine.data_parallel_rank, engine.data_parallel_size)
        result = engine.train_step(self._dataset.train(samples), lambda: self._wish(step + 1))
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
                self.samples_digest(step),
                seconds,
            )
        return result.agreed

    def samples_digest(self, step: int) -> str:
        """Short digest of the ids of the samples of one global batch."""
        ids = ",".join(map(str, self.order.samples(step)))
        return hashlib.sha256(ids.encode()).hexdigest()[:12]

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
        self._send(self._progress, completed_at)

    def _report_end(self) -> None:
        """The last step's facts once more, as far as this attempt knows them, with the last validation's loss."""
        progress = self._progress or self._facts()
        self._send(progress.model_copy(update={"validation_loss": self._state.validation_loss}), 0.0)

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

    def _send(self, progress: Progress, completed_at: float) -> None:
        peak_bytes = peak_memory_bytes(self._config.device)
        self._channel.send(ProgressEvent(progress=progress, completed_at=completed_at, peak_memory_bytes=peak_bytes))

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
        if self._engine.step > (self._saved_step or 0):
            self._save()
        if self._state.validation_step != self._engine.step:
            self._evaluate()
            self._report_end()
        self._channel.enter(Section.EXPORT, self._engine.step)
        directory = self._place.save_directory / "export"
        tokenizer = Path(self._inputs.dataset_directory) / TOKENIZER_DIRECTORY
        self._engine.export_hugging_face(directory, tokenizer)
        if self._place.rank == 0:
            self._channel.send(ExportedEvent(directory=str(directory), manifest=self._manifest()))
        self._engine.barrier()
        self._channel.enter(Section.DONE, self._engine.step)
        return Outcome.FINISHED

    # -- checkpoints

    def _save(self) -> None:
        """Have every rank write its part to its node's disk and hand it to the agent.

        Ranks with little to write stay until all have written: in the next step's collectives they would wait under
        the limit of a step, and a long save would look like a hang.
        """
        self._channel.enter(Section.SAVE, self._engine.step)
        self._write_part()
        self._engine.barrier()
        # Also after a failed write: all must agree on what is left to be saved.
        self._saved_step, self._saved_at = self._engine.step, self._clock()

    def _write_part(self) -> None:
        engine = self._engine
        began = self._clock()
        directory = self._place.save_directory / f"step-{engine.step}"
        try:
            result = engine.save_local(directory, self._extra_state())
        except NonFiniteState as error:
            raise NaNLoss(f"checkpoint of step {engine.step}: {error}") from error
        except OSError as error:
            reason = "DiskFull" if is_full(error) else "LocalDiskFailed"
            log.warning("save of step %d failed: %s: %s", engine.step, reason, error)
            message = str(error)[:1024]
            self._channel.send(
                SaveFailedEvent(step=engine.step, reason=reason, message=message, directory=str(directory))
            )
            return
        self._channel.expect_upload()
        self._channel.send(
            SavedEvent(
                step=engine.step,
                tokens=engine.step * self._tokens_per_step,
                directory=str(directory),
                files=list(result.files),
                stall_seconds=self._clock() - began,
                manifest=self._manifest() if self._place.rank == 0 else None,
            )
        )

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
            "began": AttemptStart(resume_from=self._place.resume_from).model_dump(mode="json", by_alias=True),
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
        """Verify this rank's share of the files, then load. Raises RestoreFailed on every rank when one finds fault."""
        self._channel.enter(Section.RESTORE, 0)
        place = self._place
        manifest = Manifest.decode(directory.with_suffix(".manifest.json").read_bytes())
        fault: Corrupt | None = None
        try:
            verify_local(directory, manifest.files[place.local_rank :: place.local_world_size])
        except Corrupt as error:
            fault = error
        # No rank reads a byte before all files of all nodes are known to be good.
        if self._engine.agree(int(fault is not None)):
            if fault is not None:  # the next attempt must not find the same bytes
                shutil.rmtree(directory, ignore_errors=True)
            raise RestoreFailed(str(fault) if fault else "another rank found a file that does not verify") from fault
        try:
            loaded = self._engine.load_local(directory)
        except CheckpointFormatError as error:
            raise RestoreFailed(str(error)) from error
        self._check(loaded.step, dict(loaded.extra_state), manifest)
        state = loaded.extra_state
        self._state = State(*map(state.get, ("firstLoss", "lastLoss", "validationLoss", "validationStep")))
        self._saved_step = loaded.step
        log.info("restored step %d: %s", loaded.step, json.dumps(dict(state)))

    def _check(self, step: int, state: dict[str, Any], manifest: Manifest) -> None:
        own = self._extra_state()
        for name in ("nextSample", "seed", "datasetDigest", "modelDigest", "tokens"):
            if state.get(name) != own[name]:
                raise RestoreFailed(f"checkpoint of step {step}: {name} is {state.get(name)}, expected {own[name]}")
        if not step == manifest.step == self._engine.step:
            raise RestoreFailed(
                f"checkpoint holds step {step}, its manifest {manifest.step}, the engine is at {self._engine.step}"
            )
