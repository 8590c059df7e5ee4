"""What is drawn depends on seed, step and the sample's number alone, and follows the policy's own probabilities."""

import math
from typing import Any

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trireme_trainer.rlhf.ppo.model import ActorCritic, Reference, position_ids, without_dropout
from trireme_trainer.rlhf.ppo.rollout import seeds_of
from trireme_trainer.rlhf.ppo.sampling import GumbelNoise, draw, join, sample_seed

CPU = torch.device("cpu")
END = 0
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [5, 6, 7]]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=17, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.5, eos_token_id=3, bos_token_id=4,
    )  # fmt: skip
    made = LlamaForCausalLM(shape).eval()
    # What a model's author thinks good must not change what is drawn from.
    made.generation_config.update(temperature=0.1, top_k=1, do_sample=True, repetition_penalty=9.0, max_length=7)
    return made


def drawn(model: Any, prompts: list[list[int]], seeds: list[int], **how: Any) -> list[list[int]]:
    settings = {"temperature": 1.0, "max_new_tokens": 12, "end": END, **how}
    return draw(model, prompts, seeds=seeds, **settings)


def test_a_sample_is_drawn_alike_whatever_else_is_in_the_batch(model: Any) -> None:
    seeds = seeds_of(1, 4, 0, 4)
    whole = drawn(model, PROMPTS, seeds)
    assert [drawn(model, [prompt], [seed])[0] for prompt, seed in zip(PROMPTS, seeds, strict=True)] == whole
    assert drawn(model, PROMPTS[2:], seeds_of(1, 4, 2, 2)) == whole[2:]
    assert whole[0] != whole[3], "two samples of a prompt differ"


def test_seeds_differ_by_job_step_and_sample() -> None:
    seeds = {sample_seed(*numbers) for numbers in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 11, 0), (0, 1, 10))}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_completion_ends_with_its_first_end_of_text_or_at_the_limit(model: Any) -> None:
    found = [row for step in range(8) for row in drawn(model, PROMPTS, seeds_of(0, step, 0, 4))]
    assert any(row[-1] == END and len(row) < 12 for row in found)
    assert any(len(row) == 12 for row in found)
    assert all(END not in row[:-1] for row in found)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_tokens_are_drawn_with_the_probabilities_of_softmax(temperature: float) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0]])
    count = 4000
    noise = GumbelNoise([sample_seed(0, 0, n) for n in range(count)], temperature, CPU)
    found = torch.bincount(noise(torch.zeros(count, 1), logits.repeat(count, 1)).argmax(dim=1), minlength=5) / count
    for share, probability in zip(found.tolist(), torch.softmax(logits[0] / temperature, 0).tolist(), strict=True):
        assert share == pytest.approx(probability, abs=5 * math.sqrt(probability * (1 - probability) / count))


def test_positions_do_not_count_padding() -> None:
    joined = join([[5], [6, 7, 8]], [[9, 10], [11]], END, CPU)
    assert joined.tokens.tolist() == [[0, 0, 5, 9, 10], [6, 7, 8, 11, 0]]
    assert joined.attention.tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert position_ids(joined.attention)[0].tolist() == [0, 0, 0, 1, 2]
    assert joined.completions.tolist() == [[9, 10], [11, 0]]


def test_the_reference_of_an_adapter_is_the_model_without_it(model: Any) -> None:
    joined = join(PROMPTS, [[5, 6], [7], [8, 9], [10]], END, CPU)
    plain = ActorCritic(model)
    before = Reference(plain).logprobs(joined)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    actor = ActorCritic(adapted)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    own = Reference(actor).logprobs(joined)
    assert torch.allclose(own[joined.mask], before[joined.mask], atol=1e-6)
    now, _ = actor(joined)
    moved = torch.log_softmax(now, -1).gather(-1, joined.completions.unsqueeze(-1)).squeeze(-1)
    assert not torch.allclose(own[joined.mask], moved[joined.mask], atol=0.1)
    adapted.unload()


def test_values_begin_at_0_and_dropout_is_off() -> None:
    shape = LlamaConfig(
        vocab_size=17, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        attention_dropout=0.5,
    )  # fmt: skip
    actor = ActorCritic(LlamaForCausalLM(shape)).train()
    joined = join(PROMPTS, [[5, 6], [7], [8, 9], [10]], END, CPU)
    logits, values = actor(joined)
    assert not values.any()
    assert torch.equal(logits, actor(joined)[0])
    layer = torch.nn.Sequential(torch.nn.Dropout(0.5))
    without_dropout(layer)
    assert torch.equal(layer(torch.ones(100)), torch.ones(100))
