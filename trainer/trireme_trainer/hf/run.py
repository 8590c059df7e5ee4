"""One rank's run of a job that trains a Hugging Face model: a library's trainer makes the steps, under the votes and
saves of every run."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from trireme.planning.flops import forward_flops_per_token
from trireme.protocol import Progress, Section, Settings
from trireme_trainer.agent.messages import Inputs
from trireme_trainer.data.dataset import TOKENIZER_DIRECTORY
from trireme_trainer.engines.interface import CheckpointFormatError
from trireme_trainer.hf.arguments import common_arguments
from trireme_trainer.hf.base import load_tokenizer
from trireme_trainer.hf.config import HFConfig
from trireme_trainer.hf.counters import Counters, Evaluation
from trireme_trainer.hf.data import ExampleDataset, StepSampler
from trireme_trainer.hf.export import export
from trireme_trainer.hf.models import load_model, peft_config
from trireme_trainer.hf.patience import BEST, Patience
from trireme_trainer.hf.ranks import GroupRanks
from trireme_trainer.hf.state import WEIGHT, StoredTensors, trainable_of, write_state
from trireme_trainer.hf.steering import StepTrainer, quiet, time_updates
from trireme_trainer.metrics.parts import PartClock
from trireme_trainer.metrics.throughput import Peak, Throughput
from trireme_trainer.rank.errors import NaNLoss, RestoreFailed
from trireme_trainer.rank.run import Channel, Outcome, Place, Run, Wish

log = logging.getLogger(__name__)


class HFRun:
    """One rank's run. A kind says which trainer makes its steps, and how the model is validated."""

    evaluates_at_start = False
    """Whether the held-out rows are looked at before the first step too, to compare with."""

    shown: Mapping[str, str] = {}
    """What of a step's log is shown beside the loss: names in the trainer's log, and in the job's status."""

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates of a step: as many as a step's rows, or what was drawn from them, are used for."""
        return 1

    def __init__(
        self,
        config: HFConfig[Any],
        ranks: GroupRanks,
        channel: Channel,
        place: Place,
        inputs: Inputs,
        settings: Settings,
        peak: Peak | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.ranks, self.channel, self.place = config, ranks, channel, place
        self.folders = {name: Path(folder) for name, folder in inputs.weights.items()}
        """Of the models that the job names, by the name of their place."""
        dataset = Path(inputs.dataset_directory)
        self.data = self.make_dataset(dataset)
        self.trainer: StepTrainer
        self._clock = clock
        self._run = Run(channel, place, ranks, settings, config.device, clock)
        self._checkpoint = Path(inputs.checkpoint_directory) if inputs.checkpoint_directory else None
        self._dataset_digest = "sha256:" + dataset.name
        self._tokenizer_directory = dataset / TOKENIZER_DIRECTORY
        self._total = config.total_steps(len(self.data.train))
        self._first = 0
        self._stored: StoredTensors | None = None
        self._counters = Counters()
        self._progress: Progress | None = None
        self._wish = Wish.GO_ON
        self._step_began: float | None = None
        self._skew_seconds: float | None = None
        self.parts = PartClock(config.device)
        self._tokens = 0
        self._peak = peak
        self.patience = self.make_patience()
        self._stopped_before = False
        """Whether the checkpoint is of a run that had stopped."""

    # -- what a kind adds

    def make_trainer(
        self,
        model: PreTrainedModel,
        adapter: peft.PeftConfig | None,
        tokenizer: PreTrainedTokenizerBase,
        arguments: dict[str, Any],
    ) -> StepTrainer:
        """The trainer that makes the steps, of a loaded model; `arguments` are those of transformers' trainers."""
        raise NotImplementedError

    def make_patience(self) -> Patience | None:
        """When to stop before the last step; None: never."""
        return None

    def make_dataset(self, directory: Path) -> ExampleDataset:
        """The prepared data set in a directory."""
        return ExampleDataset(directory, self.config.spec.training.seed, self.config.examples_per_step)

    def evaluate(self) -> Evaluation:
        """Of the model on the held-out rows, of which there are some. Collective."""
        raise NotImplementedError

    def step_tokens(self, step: int) -> int:
        """Tokens of the step that followed `step` completed steps, padding not counted. Collective."""
        return self.data.tokens(step)

    def step_metrics(self, logs: Mapping[str, float]) -> dict[str, float]:
        """What of a step's log is shown beside the loss."""
        return {name: float(logs[logged]) for logged, name in self.shown.items() if logs.get(logged) is not None}

    def exported_name(self, name: str) -> str | None:
        """Name in the exported model of a trained parameter; None for one that is not part of it."""
        return name

    # -- the run

    def run(self) -> Outcome:
        """From the resume point to the last step, or to a drain. Raises NaNLoss, RestoreFailed."""
        if self._checkpoint is not None:
            self._read_checkpoint(self._checkpoint)
        quiet()
        self.trainer = self._make_trainer()
        self._throughput = Throughput(self._flops_per_token(), 0, self.place.world_size, self._peak)
        if self.evaluates_at_start and not self._first:
            self._evaluate(0)
        self._run.begin()
        self._wish = Wish(self.ranks.agree(self._run.wish(self._first)))
        if not self._complete and self._wish != Wish.DRAIN:
            self.trainer.train()
        if self._wish == Wish.DRAIN:
            if self._run.unsaved(self._step):
                self.save()
            return Outcome.DRAINED
        return self._finish()

    @property
    def _complete(self) -> bool:
        """Whether the checkpoint is of the last step: nothing is left but to validate and export."""
        return self._first >= self._total or self._stopped_before

    @property
    def stopped(self) -> bool:
        """Whether no step is to follow though there could be one."""
        return self.patience is not None and self.patience.exhausted

    @property
    def _step(self) -> int:
        return max(self._first, int(self.trainer.state.global_step) // self.updates_per_step)

    def _make_trainer(self) -> StepTrainer:
        config, training = self.config, self.config.spec.training
        tokenizer = load_tokenizer(self._tokenizer_directory)
        self.channel.alive()
        torch.manual_seed(training.seed)  # of a new head's weights
        quantised_on = self.ranks.device if config.spec.method.type == "qlora" else None
        folder = self.folders[config.base_name]
        model = load_model(folder, self.weights_dtype, config.head, quantised_on=quantised_on)
        self.channel.alive()
        directory = self.place.save_directory / "trainer"
        arguments = common_arguments(config, self._total * self.updates_per_step, directory, zero=not self._complete)
        torch.manual_seed(training.seed)  # of a new adapter's
        trainer = self.make_trainer(model, peft_config(config.spec.method, config.head), tokenizer, arguments)
        if self._complete:
            self._take_weights(trainer.model)
        return trainer

    @property
    def weights_dtype(self) -> torch.dtype:
        """A frozen base computes in the job's precision; what is trained is kept in float32."""
        bf16 = self.config.spec.training.precision == "bf16"
        return torch.bfloat16 if bf16 and self.config.adapter else torch.float32

    def _take_weights(self, model: Any) -> None:
        """Of a run that is complete. Raises RestoreFailed."""
        assert self._stored is not None
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(self._stored_weight(name, parameter))

    def _stored_weight(self, name: str, parameter: Any) -> torch.Tensor:
        assert self._stored is not None
        try:
            return self._stored.read(f"{WEIGHT}/{name}", torch.Size(parameter.shape))
        except CheckpointFormatError as error:
            raise RestoreFailed(str(error)) from error

    def _flops_per_token(self) -> float:
        """Forward and backward; of a frozen matrix only the half of the backward pass that leads to its input."""
        model = self.trainer.model
        counted = [(p.numel(), p.requires_grad) for p in model.parameters()]
        share = sum(n for n, trained in counted if trained) / max(1, sum(n for n, _ in counted))
        try:
            forward = forward_flops_per_token(model.config, self.config.sequence_length)
        except AttributeError:  # another architecture: two operations per weight and token
            forward = 2.0 * sum(n for n, _ in counted)
        return float(forward * (2.0 + share))

    # -- steps

    def sampler(self) -> Sampler[int]:
        """The rows that are left to train."""
        return StepSampler(self.data, self._first, self._total)

    def fetching(self) -> None:
        """The rows of a step are fetched, with which it begins."""
        if self._step_began is None:
            self._step_began = self._clock()
            self.parts.begin()

    def begin_step(self, step: int) -> None:
        """Dropout of a step depends on seed, step and rank alone, so that a resumed run draws what the first would."""
        self.channel.enter(Section.STEP, step)
        self.fetching()
        torch.manual_seed((self.config.spec.training.seed * 1_000_003 + step) * 65_537 + self.place.rank)

    def end_step(self, step: int) -> Wish:
        """What all ranks do after this step."""
        assert self._step_began is not None
        self._seconds, self._step_began = self._clock() - self._step_began, None
        self.parts.end()
        self._tokens = self.step_tokens(step - 1)
        self._counters.tokens += self._tokens
        known = self.parts.last
        wish, mean_busy = self.ranks.agree_and_average(self._run.wish(step), known.busy if known else 0.0)
        self._wish, self._skew_seconds = Wish(wish), known.busy - mean_busy if known else None
        if step < self._total and step % self.config.spec.training.validation_interval_steps == 0:
            self._evaluate(step)
        return self._wish

    def report(self, step: int, logs: dict[str, float]) -> None:
        """The facts of a step. Raises NaNLoss before anything of it is saved."""
        loss, grad_norm = float(logs["loss"]), float(logs.get("grad_norm", 0.0))
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            raise NaNLoss(f"loss {loss}, gradient norm {grad_norm} at step {step}")
        counters = self._counters
        counters.last_loss = loss
        counters.first_loss = loss if counters.first_loss is None else counters.first_loss
        rates = self._throughput.step(self._seconds, self._tokens)
        self._progress = Progress(
            **self._facts(step),
            learning_rate=float(logs["learning_rate"]),
            grad_norm=grad_norm,
            tokens_per_second=rates.tokens_per_second,
            tflops_per_device=rates.tflops_per_device,
            mfu=rates.mfu,
            mfu_basis=rates.mfu_basis,
            step_seconds=self._seconds,
            metrics={**counters.metrics, **self.step_metrics(logs)},
        )
        self._run.report(self._progress, time.time(), self.parts.last, self._skew_seconds)
        if self.place.rank == 0:
            log.info(
                "step %d/%d loss %.6f grad_norm %.6f learning_rate %.6g seconds %.3f",
                step, self._total, loss, grad_norm, logs["learning_rate"], self._seconds,
            )  # fmt: skip

    def _facts(self, step: int) -> dict[str, Any]:
        counters = self._counters
        return {
            "step": step,
            "total_steps": self._total,
            "tokens": counters.tokens,
            "loss": counters.last_loss,
            "first_loss": counters.first_loss,
            "validation_loss": counters.validation_loss,
        }

    def _evaluate(self, step: int) -> None:
        if not len(self.data.validation):
            return
        self.channel.enter(Section.EVALUATE, step)
        found = self.evaluate()
        self._counters.validation_loss, self._counters.validation_step = found.loss, step
        shown = found.metrics if found.loss is None else {**found.metrics, "loss": found.loss}
        if not step:
            self._counters.start_metrics = {f"start/{name}": value for name, value in shown.items()}
        self._counters.validation_metrics = {f"validation/{name}": value for name, value in found.metrics.items()}
        patience = self.patience
        if patience is None or not step or found.loss is None:
            return
        if patience.see(found.loss, step) and not self._complete:
            patience.keep(self._trainable().weights(), self.place.rank)
        self._counters.validation_metrics |= patience.metrics

    def _finish(self) -> Outcome:
        """Save, validate, export. Whatever fails after the save costs no step: the next attempt goes on from there."""
        step = self._step
        if self.stopped:
            self._total = step
        if self._run.unsaved(step):
            self.save()
        if self._counters.validation_step != step:
            self._evaluate(step)
        progress = self._progress or Progress(**self._facts(step))
        validated = {
            "total_steps": self._total,
            "validation_loss": self._counters.validation_loss,
            "metrics": {**progress.metrics, **self._counters.metrics},
        }
        self._run.report(progress.model_copy(update=validated), 0.0)
        trained = (
            ((n, p.detach()) for n, p in self.trainer.model.named_parameters() if p.requires_grad)
            if self._complete
            else self._trainable().weights()
        )
        # All of them on every rank: with ZeRO, to read one is collective.
        weights = {name: tensor.cpu() for name, tensor in trained}
        if self.patience is not None and self.patience.step != step:
            weights = self.patience.weights  # of rank 0, which writes
        weights = {new: tensor for name, tensor in weights.items() if (new := self.exported_name(name)) is not None}
        unset_hf_deepspeed_config()  # else every model that is loaded from here on is shared out at once

        base = self.folders[self.config.base_name]

        def write(directory: Path) -> None:
            if self.place.rank == 0:
                export(self.config, base, self._tokenizer_directory, weights, directory, self.channel.alive)

        self._run.export(step, write, self._manifest)
        return Outcome.FINISHED

    # -- checkpoints

    def _trainable(self) -> Any:
        trainer = self.trainer
        return trainable_of(trainer.model, trainer.optimizer, self.config.plan.zero_stage)

    def save(self) -> None:
        """Save what is trained. Collective."""

        def write(directory: Path) -> Sequence[str]:
            return write_state(
                directory,
                self._trainable(),
                self._extra_state(),
                rank=self.place.rank,
                world_size=self.place.world_size,
                more=self.patience.tensors(self._step) if self.patience is not None else None,
            )

        self._run.save(self._step, self._counters.tokens, write, self._manifest)

    def _extra_state(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "datasetDigest": self._dataset_digest,
            "modelDigest": self.config.model_digest,
            **self._counters.state(),
            "patience": self.patience.state() if self.patience is not None else None,
        }

    def _manifest(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "tokens": self._counters.tokens,
            "modelDigest": self.config.model_digest,
            "datasetDigest": self._dataset_digest,
            "began": self._run.began(),
            "layout": {"data": self.config.plan.data},
            "state": {
                **self._extra_state(),
                "totalSteps": self._total,
                "training": self.config.record,
                # An adapter is served beside this model and no other.
                "base": {"uri": self.config.base.uri, "digest": self.config.base.digest},
            },
        }

    def _read_checkpoint(self, directory: Path) -> None:
        """Verify, and learn the step before the trainer is made. Raises RestoreFailed."""
        manifest = self._run.verified(directory)
        try:
            stored = StoredTensors(directory)
        except CheckpointFormatError as error:
            raise RestoreFailed(str(error)) from error
        state = stored.state
        expected = {
            "step": manifest.step,
            "datasetDigest": self._dataset_digest,
            "modelDigest": self.config.model_digest,
        }
        self._run.restored(manifest.step, state, expected)
        self._first, self._stored = manifest.step, stored
        self._counters = Counters.of(state)
        if self.patience is not None and (kept := state.get("patience")):
            at_best = kept["step"] == manifest.step
            self.patience.restore(kept, stored.part(WEIGHT if at_best else BEST) if self.place.rank == 0 else {})
            self._stopped_before = self.patience.exhausted

    def restore(self, state: TrainerState) -> None:
        """Into model, optimizer and schedule, as soon as they are made. Raises RestoreFailed."""
        time_updates(self.trainer, self.parts)
        if self._stored is None:
            return
        step, trainable = self._first, self._trainable()
        try:
            trainable.load(self._stored, int(self._stored.state["adamStep"]))
        except CheckpointFormatError as error:
            raise RestoreFailed(str(error)) from error
        schedule = self.trainer.lr_scheduler
        updates = step * self.updates_per_step
        schedule.last_epoch = updates - 1
        schedule.step()
        state.global_step = updates
        self.trainer._globalstep_last_logged = updates  # the logged loss is a mean over the steps since then
        log.info("restored step %d: %s", step, json.dumps(self._stored.state))
        self._stored = None
