"""One rank's run of a fine-tuning job: trl's trainer makes the steps, under the votes and saves of every run."""

from __future__ import annotations

import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from trireme.planning.flops import forward_flops_per_token
from trireme.protocol import Progress, Section, Settings
from trireme_trainer.agent.messages import Inputs
from trireme_trainer.data.dataset import TOKENIZER_DIRECTORY
from trireme_trainer.engines.interface import CheckpointFormatError
from trireme_trainer.finetune.config import FineTuneConfig
from trireme_trainer.finetune.data import ExampleDataset, StepSampler
from trireme_trainer.finetune.evaluation import mean_loss
from trireme_trainer.finetune.export import export
from trireme_trainer.finetune.model import load_base, peft_config, with_adapter
from trireme_trainer.finetune.prepare import load_tokenizer
from trireme_trainer.hf.ranks import GroupRanks, zero_config
from trireme_trainer.hf.state import WEIGHT, StoredTensors, trainable_of, write_state
from trireme_trainer.metrics.throughput import Peak, Throughput
from trireme_trainer.rank.errors import NaNLoss, RestoreFailed
from trireme_trainer.rank.run import Channel, Outcome, Place, Run, Wish

log = logging.getLogger(__name__)
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


@dataclass
class Counters:
    """What a checkpoint keeps beside weights and optimizer."""

    tokens: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    validation_loss: float | None = None
    validation_step: int | None = None
    """After which step that loss was measured."""


class Trainer(SFTTrainer):  # type: ignore[misc] # the library has no types
    """trl's trainer, reading the job's order of examples and saving as the job saves."""

    def __init__(self, teaching: Teaching, **how: Any) -> None:
        self._teaching = teaching
        super().__init__(**how)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self._teaching.sampler()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._teaching.save()


class Steps(TrainerCallback):  # type: ignore[misc]
    """Between trl's steps."""

    def __init__(self, teaching: Teaching) -> None:
        self._teaching = teaching

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Weights, optimizer, schedule and step of the checkpoint, once the optimizer is made."""
        self._teaching.restore(state)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A step begins."""
        self._teaching.begin_step(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Weights are those after the step; what is asked for here is done after its loss was logged."""
        wish = self._teaching.end_step(state.global_step)
        control.should_save = wish == Wish.SAVE
        control.should_training_stop = control.should_training_stop or wish == Wish.DRAIN

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """The step's loss, mean over the tokens of all ranks."""
        if logs is not None and "loss" in logs:
            self._teaching.report(state.global_step, logs)


def _quiet() -> None:
    """Keep out of every rank's log what the libraries say at each step and load."""
    transformers_logging.disable_progress_bar()
    for library in (r"torch\.distributed\.", r"transformers\."):
        warnings.filterwarnings("ignore", category=FutureWarning, module=library)
    warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler.step\(\)` before")  # restore() means it
    logging.getLogger("accelerate").setLevel(logging.WARNING)


class Teaching:
    """One rank's run."""

    def __init__(
        self,
        config: FineTuneConfig,
        ranks: GroupRanks,
        channel: Channel,
        place: Place,
        inputs: Inputs,
        settings: Settings,
        peak: Peak | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._ranks, self._channel, self._place = config, ranks, channel, place
        self._clock = clock
        self._run = Run(channel, place, ranks, settings, config.device, clock)
        self._base = Path(inputs.start_directory or "")
        self._checkpoint = Path(inputs.checkpoint_directory) if inputs.checkpoint_directory else None
        dataset = Path(inputs.dataset_directory)
        self._dataset_digest = "sha256:" + dataset.name
        self._tokenizer_directory = dataset / TOKENIZER_DIRECTORY
        training = config.spec.training
        self._data = ExampleDataset(dataset, training.seed, training.global_batch_size)
        self._total = config.total_steps(len(self._data.train))
        self._first = 0
        self._stored: StoredTensors | None = None
        self._counters = Counters()
        self._progress: Progress | None = None
        self._wish = Wish.GO_ON
        self._step_began = clock()
        self._peak = peak
        self._trainer: Trainer

    # -- the run

    def run(self) -> Outcome:
        """From the resume point to the last step, or to a drain. Raises NaNLoss, RestoreFailed."""
        if self._checkpoint is not None:
            self._read_checkpoint(self._checkpoint)
        _quiet()
        self._trainer = self._make_trainer()
        self._throughput = Throughput(self._flops_per_token(), 0, self._place.world_size, self._peak)
        self._run.begin()
        self._wish = Wish(self._ranks.agree(self._run.wish(self._first)))
        if not self._complete and self._wish != Wish.DRAIN:
            self._trainer.train()
        if self._wish == Wish.DRAIN:
            if self._run.unsaved(self._step):
                self.save()
            return Outcome.DRAINED
        return self._finish()

    @property
    def _complete(self) -> bool:
        """Whether the checkpoint is of the last step: nothing is left but to validate and export."""
        return self._first >= self._total

    @property
    def _step(self) -> int:
        return max(self._first, int(self._trainer.state.global_step))

    def _make_trainer(self) -> Trainer:
        spec, plan = self._config.spec, self._config.plan
        training, bf16 = spec.training, spec.training.precision == "bf16"
        optimizer, zero = training.optimizer, None
        if plan.zero_stage and not self._complete:
            zero = zero_config(
                plan.zero_stage,
                micro=plan.micro_batch_size,
                accumulation=plan.accumulation_steps,
                world_size=plan.data,
                clip=training.gradient_clip,
                bf16=bf16,
            )
        arguments = SFTConfig(
            output_dir=str(self._place.save_directory / "trainer"),
            per_device_train_batch_size=plan.micro_batch_size,
            gradient_accumulation_steps=plan.accumulation_steps,
            max_steps=self._total,
            learning_rate=optimizer.learning_rate,
            adam_beta1=optimizer.beta1,
            adam_beta2=optimizer.beta2,
            adam_epsilon=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            optim="adamw_torch",
            lr_scheduler_type=SCHEDULES[training.schedule.kind],
            warmup_steps=round(training.schedule.warmup_ratio * self._total),
            max_grad_norm=training.gradient_clip,
            bf16=bf16,
            fp16=False,
            seed=training.seed,
            gradient_checkpointing=training.recompute,
            deepspeed=zero,
            use_cpu=self._config.device == "cpu",
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            eval_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_drop_last=True,
            dataset_kwargs={"skip_prepare_dataset": True},
            ddp_find_unused_parameters=False,
        )
        tokenizer = load_tokenizer(self._tokenizer_directory)
        self._channel.alive()
        # A frozen base computes in the job's precision; what is trained is kept in float32.
        frozen = bf16 and self._config.adapter
        torch.manual_seed(training.seed)
        model = load_base(self._base, torch.bfloat16 if frozen else torch.float32)
        self._channel.alive()
        torch.manual_seed(training.seed)
        model = with_adapter(model, peft_config(spec.method))
        if training.recompute and self._config.adapter:
            model.enable_input_require_grads()
        if self._complete:
            self._take_weights(model)
        trainer = Trainer(
            self,
            model=model,
            args=arguments,
            train_dataset=self._data.train.dataset,
            processing_class=tokenizer,
            callbacks=[Steps(self)],
        )
        trainer.remove_callback(PrinterCallback)  # each step's line is written by report()
        return trainer

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
        model = self._trainer.model
        counted = [(p.numel(), p.requires_grad) for p in model.parameters()]
        share = sum(n for n, trained in counted if trained) / max(1, sum(n for n, _ in counted))
        try:
            forward = forward_flops_per_token(model.config, self._config.spec.data.sequence_length)
        except AttributeError:  # another architecture: two operations per weight and token
            forward = 2.0 * sum(n for n, _ in counted)
        return float(forward * (2.0 + share))

    # -- steps

    def sampler(self) -> StepSampler:
        """The rows that are left to train."""
        return StepSampler(self._data, self._first, self._total, self._config.spec.training.global_batch_size)

    def begin_step(self, step: int) -> None:
        """Dropout of a step depends on seed, step and rank alone, so that a resumed run draws what the first would."""
        self._channel.enter(Section.STEP, step)
        self._step_began = self._clock()
        torch.manual_seed((self._config.spec.training.seed * 1_000_003 + step) * 65_537 + self._place.rank)

    def end_step(self, step: int) -> Wish:
        """What all ranks do after this step."""
        self._seconds = self._clock() - self._step_began
        self._counters.tokens += self._data.tokens(step - 1)
        self._wish = Wish(self._ranks.agree(self._run.wish(step)))
        if step < self._total and step % self._config.spec.training.validation_interval_steps == 0:
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
        rates = self._throughput.step(self._seconds, self._data.tokens(step - 1))
        self._progress = Progress(
            **self._facts(step),
            learning_rate=float(logs["learning_rate"]),
            grad_norm=grad_norm,
            tokens_per_second=rates.tokens_per_second,
            tflops_per_device=rates.tflops_per_device,
            mfu=rates.mfu,
            mfu_basis=rates.mfu_basis,
            step_seconds=self._seconds,
        )
        self._run.report(self._progress, time.time())
        if self._place.rank == 0:
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
        if not len(self._data.validation):
            return
        self._channel.enter(Section.EVALUATE, step)
        plan, trainer = self._config.plan, self._trainer
        self._counters.validation_loss = mean_loss(
            trainer, self._data.validation, plan.micro_batch_size, self._ranks, self._place, self._channel.alive
        )
        self._counters.validation_step = step

    def _finish(self) -> Outcome:
        """Save, validate, export. Whatever fails after the save costs no step: the next attempt goes on from there."""
        step = self._step
        if self._run.unsaved(step):
            self.save()
        if self._counters.validation_step != step:
            self._evaluate(step)
        progress = self._progress or Progress(**self._facts(step))
        self._run.report(progress.model_copy(update={"validation_loss": self._counters.validation_loss}), 0.0)
        if self._complete:
            weights = {n: p.detach() for n, p in self._trainer.model.named_parameters() if p.requires_grad}
        else:
            weights = {name: tensor.cpu() for name, tensor in self._trainable().weights()}
        unset_hf_deepspeed_config()  # else every model that is loaded from here on is shared out at once

        def write(directory: Path) -> None:
            if self._place.rank == 0:
                export(self._config, self._base, self._tokenizer_directory, weights, directory, self._channel.alive)

        self._run.export(step, write, self._manifest)
        return Outcome.FINISHED

    # -- checkpoints

    def _trainable(self) -> Any:
        trainer = self._trainer
        return trainable_of(trainer.model, trainer.optimizer, self._config.plan.zero_stage)

    def save(self) -> None:
        """Save what is trained. Collective."""

        def write(directory: Path) -> Sequence[str]:
            return write_state(
                directory,
                self._trainable(),
                self._extra_state(),
                rank=self._place.rank,
                world_size=self._place.world_size,
            )

        self._run.save(self._step, self._counters.tokens, write, self._manifest)

    def _extra_state(self) -> dict[str, Any]:
        counters = self._counters
        return {
            "step": self._step,
            "tokens": counters.tokens,
            "datasetDigest": self._dataset_digest,
            "modelDigest": self._config.model_digest,
            "firstLoss": counters.first_loss,
            "lastLoss": counters.last_loss,
            "validationLoss": counters.validation_loss,
            "validationStep": counters.validation_step,
        }

    def _manifest(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "tokens": self._counters.tokens,
            "modelDigest": self._config.model_digest,
            "datasetDigest": self._dataset_digest,
            "began": self._run.began(),
            "layout": {"data": self._config.plan.data},
            "state": {
                **self._extra_state(),
                "totalSteps": self._total,
                "training": self._config.record,
                "base": {"uri": self._config.base.uri, "digest": self._config.base.digest},
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
            "modelDigest": self._config.model_digest,
        }
        self._run.restored(manifest.step, state, expected)
        self._first, self._stored = manifest.step, stored
        self._counters = Counters(
            int(state["tokens"]), *map(state.get, ("firstLoss", "lastLoss", "validationLoss", "validationStep"))
        )

    def restore(self, state: TrainerState) -> None:
        """Into model, optimizer and schedule, as soon as they are made. Raises RestoreFailed."""
        if self._stored is None:
            return
        step, trainable = self._first, self._trainable()
        try:
            trainable.load(self._stored, int(self._stored.state["adamStep"]))
        except CheckpointFormatError as error:
            raise RestoreFailed(str(error)) from error
        schedule = self._trainer.lr_scheduler
        schedule.last_epoch = step - 1
        schedule.step()
        state.global_step = step
        self._trainer._globalstep_last_logged = step  # the logged loss is a mean over the steps since then
        log.info("restored step %d: %s", step, json.dumps(self._stored.state))
        self._stored = None
