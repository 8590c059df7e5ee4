"""Drawing completions, so that what is drawn for a prompt depends on seed, step and the sample's number alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import StoppingCriteria, StoppingCriteriaList

from trireme_trainer.rlhf.drawn import pad_left, until_end
from trireme_trainer.rlhf.ppo.model import Sequences


def sample_seed(seed: int, step: int, sample: int) -> int:
    """The seed of one sample's draws."""
    digest = hashlib.sha256(f"{seed}/{step}/{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class GumbelNoise(LogitsProcessor):  # type: ignore[misc] # the library has no types
    """Makes the likeliest token a draw from softmax(logits / temperature): argmax of logits / T - log(-log U).

    Gumbel 1954; so each row has a generator of its own, whatever other rows are in the batch.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, device: torch.device) -> None:
        self._temperature = temperature
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.empty_like(scores)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores / self._temperature - noise.log()


class SignOfLife(StoppingCriteria):  # type: ignore[misc]
    """Stops nothing; called after each token."""

    def __init__(self, alive: Callable[[], None]) -> None:
        self._alive = alive

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        self._alive()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@torch.no_grad()
def draw(
    policy: Any,
    prompts: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    temperature: float,
    max_new_tokens: int,
    end: int,
    alive: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """A completion for each prompt, its end-of-text token included where it has one; `seeds`: one for each."""
    device = policy.get_input_embeddings().weight.device
    tokens, attention = pad_left(prompts, end, device)
    # Whatever a call leaves out is taken from the model's own settings, penalties too; so these must be plain.
    policy.generation_config, own = _plain_config(policy, end), policy.generation_config
    try:
        found = policy.generate(
            input_ids=tokens,
            attention_mask=attention,
            max_new_tokens=max_new_tokens,
            logits_processor=LogitsProcessorList([GumbelNoise(seeds, temperature, device)]),
            stopping_criteria=StoppingCriteriaList([SignOfLife(alive)]),
        )
    finally:
        policy.generation_config = own
    return [until_end(row.tolist(), end) for row in found[:, tokens.shape[1] :]]


def _plain_config(policy: Any, end: int) -> Any:
    """The likeliest token at each place, of all, as its probability is: noise makes a draw of that."""
    config = type(policy.generation_config)(do_sample=False, num_beams=1, eos_token_id=end, pad_token_id=end)
    config.bos_token_id = policy.generation_config.bos_token_id
    return config


def join(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad: int, device: torch.device
) -> Sequences:
    """Prompts with their completions."""
    left, left_mask = pad_left(prompts, pad, device)
    width = max(map(len, completions))
    right = torch.full((len(completions), width), pad, dtype=torch.long)
    right_mask = torch.zeros_like(right)
    for row, completion in enumerate(completions):
        right[row, : len(completion)] = torch.tensor(completion)
        right_mask[row, : len(completion)] = 1
    right, right_mask = right.to(device), right_mask.to(device)
    return Sequences(torch.cat([left, right], dim=1), torch.cat([left_mask, right_mask], dim=1), width)
