"""Updates of PPO: equal to a small implementation of the papers, whatever the padding, ranks and micro-batches."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from reference import ppo_reference
from trireme.resources.algorithms import KlStop, Ppo, Ptx
from trireme.resources.tuning import TuningOptimizer
from trireme_trainer.data.examples import IGNORED
from trireme_trainer.rlhf.ppo.model import ActorCritic, Reference
from trireme_trainer.rlhf.ppo.optimizer import PlainUpdates, adamw
from trireme_trainer.rlhf.ppo.rollout import Rollout, finish, judge
from trireme_trainer.rlhf.ppo.sampling import join
from trireme_trainer.rlhf.ppo.update import LabelledRow, Learner, UpdateMetrics, mini_batches, rollout_metrics
from trireme_trainer.rlhf.rewards.batch import Completions, Scores

VOCABULARY, END, RATE = 23, 0, 1e-2
OPTIMIZER = TuningOptimizer(learning_rate=RATE)


def alone(*numbers: float) -> list[float]:
    """Sums over one rank."""
    return list(numbers)


def make_model(seed: int = 0) -> Any:
    """In float64 throughout: this architecture computes nothing in a narrower type."""
    torch.manual_seed(seed)
    shape = GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.1, embd_pdrop=0.1,
        attn_pdrop=0.1, initializer_range=0.3, eos_token_id=END, bos_token_id=END,
    )  # fmt: skip
    return GPT2LMHeadModel(shape).double().eval()


def make_actor(model: Any) -> ActorCritic:
    actor = ActorCritic(model, temperature=0.8).double()
    torch.manual_seed(5)
    torch.nn.init.normal_(actor.value_head.weight, std=0.5)
    return actor


def make_batch(seed: int, rows: int = 8) -> tuple[list[list[int]], list[list[int]], list[float]]:
    """(prompts, completions, scores) of unequal lengths; some end with the end-of-text token and some are cut."""
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    prompts = [[number(1, VOCABULARY) for _ in range(number(1, 9))] for _ in range(rows)]
    completions = []
    for _ in range(rows):
        length = number(1, 8)
        drawn = [number(1, VOCABULARY) for _ in range(length)]
        completions.append([*drawn[:-1], END] if length < 7 else drawn)
    return prompts, completions, torch.randn(rows, generator=generator, dtype=torch.float64).tolist()


def completions_of(texts: int, scores: Sequence[float]) -> tuple[Completions, Scores]:
    blank = Completions([""] * texts, ["x"] * texts, [1] * texts, [True] * texts, [None] * texts, [{}] * texts)
    return blank, Scores(list(scores), {"only": list(scores)})


def make_rollout(
    actor: ActorCritic, reference: Any, batch: tuple[list[list[int]], list[list[int]], list[float]], how: Ppo
) -> Rollout:
    prompts, drawn, scores = batch
    sequences = join(prompts, drawn, END, torch.device("cpu"))
    held = Reference(actor, reference, 0.8)
    if held._own is not None:
        held._own.double()
    return finish(sequences, *judge(actor, held, sequences, 3), *completions_of(len(drawn), scores), how, alone)


def learner(actor: ActorCritic, how: Ppo, *, micro: int = 3, **more: Any) -> Learner:
    updates = PlainUpdates(actor, adamw(actor, OPTIMIZER, RATE), 0.7)
    return Learner(actor, updates, how, seed=3, micro_batch_size=micro, total=alone, **more)


HOW = Ppo(kl_coefficient=0.1, entropy_coefficient=0.02, gamma=0.95, epochs=3, clip_range=0.1, value_clip_range=0.05)


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_an_update_equals_one_written_from_the_papers_sequence_by_sequence(seed: int, whiten: bool) -> None:
    how = HOW.model_copy(update={"whiten_advantages": whiten})
    batch, reference = make_batch(seed), make_model(1)
    actor = make_actor(make_model())
    expected = copy.deepcopy(actor)
    found = learner(actor, how).learn(make_rollout(actor, copy.deepcopy(reference), batch, how), 0, 0, RATE)
    settings = ppo_reference.Settings(
        kl_coefficient=how.kl_coefficient, clip=how.clip_range, value_clip=how.value_clip_range,
        value_coefficient=how.value_coefficient, entropy_coefficient=how.entropy_coefficient, discount=how.gamma,
        gae=how.lambda_, epochs=how.epochs, whiten=whiten, temperature=0.8, learning_rate=RATE, beta1=OPTIMIZER.beta1,
        beta2=OPTIMIZER.beta2, adam_eps=OPTIMIZER.eps, max_norm=0.7,
    )  # fmt: skip
    losses = ppo_reference.update(expected.policy, expected.value_head, reference, *batch, settings)
    assert found.loss == pytest.approx(sum(losses) / len(losses), abs=1e-9)
    assert found.clip_fraction > 0, "the case takes in clipping"
    assert found.value_clip_fraction > 0
    differences = [
        float((one - other).abs().max()) for one, other in zip(actor.parameters(), expected.parameters(), strict=True)
    ]
    assert max(differences) < 1e-6
    moved = [
        float((one - other).abs().max())
        for one, other in zip(actor.policy.parameters(), make_model().parameters(), strict=True)
    ]
    assert max(moved) > RATE, "something was learned that could differ"


def test_at_the_first_update_the_policy_is_the_one_that_drew() -> None:
    actor = make_actor(make_model())
    actor.train()  # dropout is off all the same
    how = HOW.model_copy(update={"epochs": 1})
    rollout = make_rollout(actor, make_model(1), make_batch(0), how)
    found = learner(actor, how).learn(rollout, 0, 0, RATE)
    assert found.approximate_kl == pytest.approx(0, abs=1e-12)
    assert (found.clip_fraction, found.value_clip_fraction, found.updates) == (0, 0, 1)


def test_what_is_computed_does_not_depend_on_padding() -> None:
    """Of an architecture with rotary positions."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    actor = ActorCritic(LlamaForCausalLM(shape).eval())
    torch.nn.init.normal_(actor.value_head.weight)
    prompts, drawn, _ = make_batch(2)
    whole = join(prompts, drawn, END, torch.device("cpu"))
    logprobs, values, held = judge(actor, Reference(actor), whole, 8)
    assert torch.equal(logprobs, held), "without an adapter to turn off, the policy is its own reference"
    for row, (prompt, completion) in enumerate(zip(prompts, drawn, strict=True)):
        single = join([prompt], [completion], END, torch.device("cpu"))
        alone_logprobs, alone_values, _ = judge(actor, Reference(actor), single, 1)
        count = len(completion)
        assert torch.allclose(logprobs[row, :count], alone_logprobs[0], atol=1e-5)
        assert torch.allclose(values[row, :count], alone_values[0], atol=1e-5)
        assert whole.mask[row].tolist() == [True] * count + [False] * (whole.completion_tokens - count)


@pytest.mark.parametrize("micro", [1, 2, 8])
def test_micro_batches_change_nothing_of_an_update(micro: int) -> None:
    batch, results = make_batch(1), []
    for size in (micro, 4):
        actor = make_actor(make_model())
        learner(actor, HOW, micro=size).learn(make_rollout(actor, make_model(1), batch, HOW), 0, 0, RATE)
        results.append([p.detach().clone() for p in actor.parameters()])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-9)


def test_each_sample_is_in_one_mini_batch_of_an_epoch_whatever_rank_has_it() -> None:
    def members(ranks: int, epoch: int) -> list[set[int]]:
        share = 12 // ranks
        parts: list[set[int]] = [set() for _ in range(3)]
        for rank in range(ranks):
            for part, rows in zip(parts, mini_batches(share, 3, 7, 2, epoch, rank * share), strict=True):
                part |= {rank * share + row for row in rows}
        return parts

    for epoch in range(4):
        whole = members(1, epoch)
        assert [len(part) for part in whole] == [4, 4, 4]
        assert set().union(*whole) == set(range(12))
        assert members(2, epoch) == members(4, epoch) == whole
    assert len({tuple(map(tuple, members(1, epoch))) for epoch in range(4)}) > 1, "epochs differ"
    with pytest.raises(ValueError, match="cannot be cut into 3"):
        list(mini_batches(4, 3, 0, 0, 0, 0))


def test_updates_end_early_when_they_have_moved_the_policy_too_far() -> None:
    stop = KlStop(threshold=1e-4, patience=2)
    how = HOW.model_copy(update={"epochs": 6, "kl_stop": stop})
    actor = make_actor(make_model())
    found = learner(actor, how).learn(make_rollout(actor, make_model(1), make_batch(0), how), 0, 0, RATE)
    assert 2 <= found.updates < 6
    assert sum(found.kl_by_update[-2:]) / 2 > 1e-4
    calm = HOW.model_copy(update={"epochs": 6, "kl_stop": KlStop(threshold=900, patience=2)})
    actor = make_actor(make_model())
    assert learner(actor, calm).learn(make_rollout(actor, make_model(1), make_batch(0), calm), 0, 0, RATE).updates == 6


def test_text_is_learned_beside_the_rewards_by_its_mean_cross_entropy() -> None:
    """Ouyang et al. 2022: a language-model loss, times a coefficient."""
    rows = [
        LabelledRow([3, 4, 5, 6], [IGNORED, IGNORED, 5, 6]),
        LabelledRow([7, 8], [7, 8]),
        *[LabelledRow([9, 10, 11], [9, 10, 11])] * 6,
    ]
    asked: list[int] = []

    def ptx(update: int) -> list[LabelledRow]:
        asked.append(update)
        return rows

    model = make_model()
    losses = []
    for row in rows:
        labels = torch.tensor([row.labels])
        count = int((labels[:, 1:] != IGNORED).sum())
        found = model(input_ids=torch.tensor([row.tokens]), labels=labels).loss
        losses.append((float(found) * count, count))
    mean = sum(loss for loss, _ in losses) / sum(count for _, count in losses)
    source = [{"uri": "/text"}]
    how = Ppo(epochs=2, mini_batches=1, ptx=Ptx.model_validate({"coefficient": 0.5, "sources": source}))
    metrics: list[UpdateMetrics] = []
    for epochs in (1, 2):
        actor = make_actor(make_model())
        given = how.model_copy(update={"epochs": epochs})
        rollout = make_rollout(actor, make_model(1), make_batch(0), given)
        metrics.append(learner(actor, given, ptx=ptx).learn(rollout, 5, 0, RATE))
    assert metrics[0].ptx_loss == pytest.approx(mean, abs=1e-6)
    assert metrics[1].ptx_loss < mean, "the second update has learned from the first"
    assert asked == [5, 10, 11], "rows depend on the number of the update"
    expected = metrics[0].policy_loss + how.value_coefficient * metrics[0].value_loss + 0.5 * mean
    assert metrics[0].loss == pytest.approx(expected)


def test_metrics_of_a_rollout_are_means_over_completions_and_tokens() -> None:
    actor = make_actor(make_model())
    batch = make_batch(0)
    rollout = make_rollout(actor, make_model(1), batch, HOW)
    found = rollout_metrics(rollout, alone)
    assert found["reward"] == found["rewards/only"] == pytest.approx(sum(batch[2]) / 8)
    mask = rollout.sequences.mask
    assert found["kl"] == pytest.approx(float((rollout.logprobs - rollout.reference)[mask].mean()))
    assert found["cutFraction"] == 0
    assert found["explainedVariance"] < 1


def test_what_stands_outside_the_completions_has_no_gradient_however_far_off_it_is() -> None:
    actor = make_actor(make_model())
    rollout = make_rollout(actor, make_model(1), make_batch(0), HOW)
    assert not rollout.sequences.mask.all()
    rollout.logprobs[~rollout.sequences.mask] = -1e6
    found = learner(actor, HOW).learn(rollout, 0, 0, RATE)
    assert found.grad_norm < 1e3
    assert all(torch.isfinite(p).all() for p in actor.parameters())
