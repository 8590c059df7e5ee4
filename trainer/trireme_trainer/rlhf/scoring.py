"""What a run's completions are worth, and how the policy does on prompts that it does not learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase
from trl.models import unwrap_model_for_generation

from trireme_trainer.hf.counters import Evaluation
from trireme_trainer.hf.evaluation import evaluating, held_out_batches
from trireme_trainer.rank.run import Place
from trireme_trainer.rlhf.config import REWARDS_DIRECTORY, RLHFConfig
from trireme_trainer.rlhf.data import Prompt, PromptRows
from trireme_trainer.rlhf.drawn import pad_left, until_end
from trireme_trainer.rlhf.rewards.batch import Completions, RewardSum
from trireme_trainer.rlhf.rewards.build import build_rewards, read_sources, try_rewards
from trireme_trainer.rlhf.rewards.model import RewardModel

EVALUATION_SEED = 20_240_229
"""Of the draws on held-out prompts: the same at every evaluation, so that two differ by the policy alone."""


def make_rewards(
    config: RLHFConfig, folders: dict[str, Path], dataset: Path, device: torch.device, alive: Callable[[], None]
) -> RewardSum:
    """The rewards of the spec, tried once. Sources of functions are those that were prepared. Raises RewardUnusable."""
    rewards = config.spec.rewards or []
    places = {reward.name: f"rewards[{number}].model" for number, reward in enumerate(rewards)}
    dtype = torch.bfloat16 if config.spec.training.precision == "bf16" else torch.float32

    def model_scorer(name: str) -> RewardModel:
        alive()
        folder = folders[places[name]]
        return RewardModel(name, folder, device=device, dtype=dtype, batch_size=config.plan.micro_batch_size)

    made = build_rewards(rewards, read_sources(dataset / REWARDS_DIRECTORY, rewards), model_scorer)
    try_rewards(made, alive)
    return made


def completions_of(
    rows: PromptRows, numbers: Sequence[int], drawn: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> Completions:
    """What is scored: tokens that were drawn for the prompts of these rows, one completion each."""
    return as_completions([rows.prompt(number) for number in numbers], drawn, tokenizer)


def as_completions(
    prompts: Sequence[Prompt], drawn: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> Completions:
    """What is scored: tokens that were drawn for these prompts, one completion each."""
    end = tokenizer.eos_token_id
    ended = [bool(tokens) and tokens[-1] == end for tokens in drawn]
    said = [list(tokens[:-1] if over else tokens) for tokens, over in zip(drawn, ended, strict=True)]
    return Completions(
        prompts=[prompt.text for prompt in prompts],
        texts=tokenizer.batch_decode(said, skip_special_tokens=True),
        lengths=[len(tokens) for tokens in said],
        ended=ended,
        messages=[prompt.messages for prompt in prompts],
        fields=[prompt.fields for prompt in prompts],
    )


def generation_config(config: RLHFConfig, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """How completions are drawn."""
    drawing = config.spec.generation
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return GenerationConfig(
        max_new_tokens=drawing.max_new_tokens,
        do_sample=True,
        temperature=drawing.temperature,
        top_p=drawing.top_p,
        top_k=drawing.top_k,
        pad_token_id=padding,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        disable_compile=True,
    )


@torch.no_grad()
def draw(model: Any, prompts: Sequence[Sequence[int]], how: GenerationConfig, device: torch.device) -> list[list[int]]:
    """A completion of each prompt, with the end-of-text token where the model drew it."""
    tokens, attention = pad_left(prompts, int(how.pad_token_id), device)
    drawn = model.generate(tokens, attention_mask=attention, generation_config=how)
    return [until_end(row.tolist(), how.eos_token_id) for row in drawn[:, tokens.shape[1] :]]


@torch.no_grad()
def mean_rewards(
    trainer: Any,
    rows: PromptRows,
    rewards: RewardSum,
    config: RLHFConfig,
    tokenizer: PreTrainedTokenizerBase,
    ranks: Any,
    place: Place,
    alive: Callable[[], None],
) -> Evaluation:
    """Means over one completion of each held-out prompt: the weighted sum, each reward, and the length in tokens.

    Collective. Raises RewardFailed.
    """
    how = generation_config(config, tokenizer)
    sums = dict.fromkeys(("completions", "reward", "length", *(part.name for part in rewards.parts)), 0.0)
    with (
        evaluating(trainer.model_wrapped),
        unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as model,
        torch.random.fork_rng(devices=[ranks.device] if ranks.device.type == "cuda" else []),
    ):
        for mine, counts in held_out_batches(rows, config.plan.micro_batch_size, place):
            torch.manual_seed(EVALUATION_SEED + mine[0])
            drawn = draw(model, [rows.prompt(number).tokens for number in mine], how, ranks.device)
            alive()
            batch = completions_of(rows, mine, drawn, tokenizer)
            scores = rewards.score(batch, alive)
            found = {
                "completions": [1.0] * len(mine),
                "reward": scores.total,
                "length": batch.lengths,
                **scores.by_name,
            }
            for name, values in found.items():
                sums[name] += float(sum(values)) if counts else 0.0
    totals = dict(zip(sums, ranks.total(*sums.values()), strict=True))
    count = max(1.0, totals.pop("completions"))
    means = {name: total / count for name, total in totals.items()}
    shown = {name: means.pop(name) for name in ("reward", "length")}
    return Evaluation(None, {**shown, **{f"rewards/{name}": mean for name, mean in means.items()}})
