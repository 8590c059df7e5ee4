"""Proximal policy optimization (Schulman et al. 2017) as one rank's run of an RLHF job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trireme.resources.algorithms import Ppo
from trireme_trainer.hf.counters import Evaluation
from trireme_trainer.hf.data import ExampleDataset
from trireme_trainer.hf.evaluation import held_out_batches
from trireme_trainer.hf.models import load_model, with_adapter
from trireme_trainer.hf.run import HFRun
from trireme_trainer.hf.steering import StepTrainer
from trireme_trainer.rank.run import Wish
from trireme_trainer.rlhf.config import PTX_DIRECTORY, RLHFConfig
from trireme_trainer.rlhf.data import Prompt, PromptDataset
from trireme_trainer.rlhf.ppo.model import ActorCritic, Reference
from trireme_trainer.rlhf.ppo.rollout import DRAWN_AT_ONCE, Rollout, Sampler
from trireme_trainer.rlhf.ppo.sampling import sample_seed
from trireme_trainer.rlhf.ppo.trainer import PpoTrainer, Share
from trireme_trainer.rlhf.ppo.update import LabelledRow
from trireme_trainer.rlhf.rewards.batch import RewardSum
from trireme_trainer.rlhf.scoring import EVALUATION_SEED, make_rewards
from trireme_trainer.rlhf.transcripts import Transcripts

POLICY = "policy."
"""Begins the names of the policy's parameters in the model that is trained."""
NOT_SHOWN = ("loss", "grad_norm", "learning_rate")


class AlgorithmRun(HFRun):
    """One rank's run."""

    config: RLHFConfig
    data: PromptDataset
    evaluates_at_start = True
    _rewards: RewardSum
    _sampler: Sampler
    _ptx: ExampleDataset | None = None

    @property
    def how(self) -> Ppo:
        """The algorithm's parameters."""
        assert self.config.spec.ppo is not None, "settled at admission"
        return self.config.spec.ppo

    @property
    def _bf16(self) -> bool:
        return self.config.spec.training.precision == "bf16"

    @property
    def share(self) -> int:
        """Completions of this rank in a step."""
        spec = self.config.spec
        return self.config.examples_per_step * (spec.generation.samples_per_prompt or 1) // self.place.world_size

    def make_dataset(self, directory: Path) -> PromptDataset:
        """Prompts, and beside them what the language-model loss is on."""
        seed, self._dataset = self.config.spec.training.seed, directory
        if self.how.ptx is not None:
            rows = self.share * self.place.world_size // self.how.mini_batches
            self._ptx = ExampleDataset(directory / PTX_DIRECTORY, seed, rows)
        return PromptDataset(directory, seed, self.config.examples_per_step)

    def make_trainer(
        self,
        model: PreTrainedModel,
        adapter: peft.PeftConfig | None,
        tokenizer: PreTrainedTokenizerBase,
        arguments: dict[str, Any],
    ) -> StepTrainer:
        """With the rewards of the spec, and the reference that is named; else the policy as it starts."""
        spec, plan, device = self.config.spec, self.config.plan, self.ranks.device
        drawing, alive = spec.generation, self.channel.alive
        self._rewards = make_rewards(self.config, self.folders, self._dataset, device, alive)
        self._transcripts = Transcripts(self.channel, wanted=self.place.rank == 0)
        self._sampler = Sampler(
            tokenizer,
            self._rewards,
            temperature=drawing.temperature,
            max_new_tokens=drawing.max_new_tokens or 1,
            rows_at_once=DRAWN_AT_ONCE * plan.micro_batch_size,
            alive=alive,
            parts=self.parts,
        )
        if spec.training.recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        actor = ActorCritic(with_adapter(model, adapter).to(device), drawing.temperature, bf16=self._bf16)
        return PpoTrainer(
            self,
            actor,
            self._reference(actor, device),
            self._sampler,
            Share(self._prompts, self.place.rank * self.share),
            self.how,
            spec.training,
            plan,
            total_steps=int(arguments["max_steps"]),
            zero=arguments["deepspeed"] is not None,
            total=self.ranks.total,
            ptx=self._ptx_rows if self._ptx is not None else None,
            alive=alive,
        )

    def _reference(self, actor: ActorCritic, device: torch.device) -> Reference:
        """Frozen weights compute in the job's precision."""
        spec, named = self.config.spec, self.config.reference_name
        folder = self.folders.get(named)
        if folder is None and self.config.adapter:
            return Reference(actor)
        dtype = torch.bfloat16 if self._bf16 else torch.float32
        model = load_model(folder or self.folders[self.config.base_name], dtype).to(device)
        self.channel.alive()
        return Reference(actor, model, spec.generation.temperature, bf16=self._bf16)

    def _prompts(self, step: int) -> Sequence[Prompt]:
        """This rank's prompts of a step, each as often as it is answered."""
        rows, samples = self.data.rows(step), self.config.spec.generation.samples_per_prompt or 1
        each = len(rows) // self.place.world_size
        mine = rows[self.place.rank * each : (self.place.rank + 1) * each]
        return [self.data.train.prompt(row) for row in mine for _ in range(samples)]

    def _ptx_rows(self, update: int) -> Sequence[LabelledRow]:
        """This rank's rows of text for an update."""
        assert self._ptx is not None
        rows = self._ptx.rows(update)
        each = len(rows) // self.place.world_size
        found = self._ptx.train.dataset[rows[self.place.rank * each : (self.place.rank + 1) * each]]
        return [LabelledRow(*row) for row in zip(found["input_ids"], found["labels"], strict=True)]

    def step_tokens(self, step: int) -> int:
        """Tokens of the last step's prompts and of what was drawn for them, on all ranks."""
        return int(self.ranks.total(float(self._rollout.sequences.attention.sum()))[0])

    def end_step(self, step: int) -> Wish:
        """Also: show some of what was learned from."""
        self._transcripts.add(step, self._rollout.completions, self._rollout.scores)
        return super().end_step(step)

    @property
    def _rollout(self) -> Rollout:
        """The last step's."""
        assert self._made.rollout is not None
        return self._made.rollout

    @property
    def _made(self) -> PpoTrainer:
        assert isinstance(self.trainer, PpoTrainer)
        return self.trainer

    def step_metrics(self, logs: Mapping[str, float]) -> dict[str, float]:
        """Rewards, lengths, and how far the policy moved."""
        hidden = NOT_SHOWN if self._ptx is not None else (*NOT_SHOWN, "ptxLoss")
        return {name: value for name, value in logs.items() if name not in hidden}

    def exported_name(self, name: str) -> str | None:
        """The policy alone is exported: the value head is of no use without its training."""
        return name.removeprefix(POLICY) if name.startswith(POLICY) else None

    def evaluate(self) -> Evaluation:
        """Means over one completion of each held-out prompt, drawn with the same seeds at every evaluation."""
        rows, rewards = self.data.validation, self._rewards
        actor = self._made.model
        was_training = actor.training
        actor.eval()
        names = ["reward", "length", *(f"rewards/{part.name}" for part in rewards.parts)]
        sums = [0.0] * (1 + len(names))
        for mine, counts in held_out_batches(rows, self.config.plan.micro_batch_size, self.place):
            prompts = [rows.prompt(number) for number in mine]
            seeds = [sample_seed(EVALUATION_SEED, 0, number) for number in mine]
            drawn = self._sampler.draw(actor, prompts, seeds)
            completions = self._sampler.completions(prompts, drawn)
            scores = self._sampler.score(completions)
            if counts:
                values = (scores.total, completions.lengths, *scores.by_name.values())
                found = [float(len(mine)), *(float(sum(value)) for value in values)]
                sums = [one + more for one, more in zip(sums, found, strict=True)]
        actor.train(was_training)
        count, *totals = self.ranks.total(*sums)
        return Evaluation(None, {name: total / max(1.0, count) for name, total in zip(names, totals, strict=True)})
