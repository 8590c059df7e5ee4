"""The formulas of PPO against published numbers and against their definitions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trireme_trainer.rlhf.ppo.estimates import (
    KlStop,
    explained_variance,
    generalized_advantages,
    token_rewards,
    whiten,
)
from trireme_trainer.rlhf.ppo.losses import approximate_kl, entropy_of, logprobs_of, policy_loss, value_loss


def alone(*numbers: float) -> list[float]:
    """Sums over one rank."""
    return list(numbers)


def row(*numbers: float) -> torch.Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def full(like: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(like, dtype=torch.bool)


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "clipped"),
    [(1.5, 1, 1.2, True), (0.5, -1, -0.8, True), (0.5, 1, 0.5, False), (1.5, -1, -1.5, False)],
)
def test_the_surrogate_is_clipped_where_that_lowers_it(
    ratio: float, advantage: float, objective: float, clipped: bool
) -> None:
    """Schulman et al. 2017, figure 1, with epsilon 0.2."""
    loss, took_effect = policy_loss(row(math.log(ratio)), row(0.0), row(advantage), 0.2)
    assert loss.item() == pytest.approx(-objective)
    assert bool(took_effect) is clipped


def test_a_clipped_token_has_no_gradient_and_another_has_the_policy_gradient() -> None:
    for log, advantage, slope in ((math.log(1.5), 1.0, 0.0), (0.0, 1.0, -1.0), (math.log(1.5), -1.0, 1.5)):
        logprobs = row(log).requires_grad_()
        policy_loss(logprobs, row(0.0), row(advantage), 0.2)[0].sum().backward()
        assert logprobs.grad is not None
        assert logprobs.grad.item() == pytest.approx(slope)


def test_advantages_of_a_worked_example() -> None:
    """Schulman et al. 2016, eq. 16: rewards 0, 0, 1, values .5, .6, .7, gamma .99, lambda .95, by hand from the end."""
    rewards, values = row(0, 0, 1), row(0.5, 0.6, 0.7)
    advantages, returns = generalized_advantages(rewards, values, full(values), 0.99, 0.95)
    assert advantages[0].tolist() == pytest.approx([0.446829, 0.375150, 0.300000], abs=1e-6)
    assert (returns - advantages).tolist() == [pytest.approx([0.5, 0.6, 0.7])]
    assert whiten(advantages, full(values), alone)[0].tolist() == pytest.approx(
        [0.992027, 0.015760, -1.007787], abs=1e-6
    )


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=8), st.floats(0, 1))
def test_advantages_at_lambda_1_are_the_rest_of_the_rewards_less_the_value(
    steps: list[tuple[float, float]], gamma: float
) -> None:
    rewards, values = row(*(r for r, _ in steps)), row(*(v for _, v in steps))
    advantages, returns = generalized_advantages(rewards, values, full(values), gamma, 1.0)
    for t in range(len(steps)):
        rest = sum(gamma ** (later - t) * steps[later][0] for later in range(t, len(steps)))
        assert returns[0, t].item() == pytest.approx(rest, abs=1e-9)
        assert advantages[0, t].item() == pytest.approx(rest - steps[t][1], abs=1e-9)


def test_what_stands_behind_a_completion_changes_nothing_of_it() -> None:
    rewards, values = row(0.1, 0.2, 0.3), row(0.5, -0.5, 0.25)
    alone_, _ = generalized_advantages(rewards, values, full(values), 0.9, 0.8)
    padding = torch.full((1, 4), float("nan"), dtype=torch.float64)
    mask = torch.tensor([[True] * 3 + [False] * 4])
    padded, returns = generalized_advantages(
        torch.cat([rewards, padding], 1), torch.cat([values, padding], 1), mask, 0.9, 0.8
    )
    assert padded[0, :3].tolist() == alone_[0].tolist()
    assert padded[0, 3:].tolist() == returns[0, 3:].tolist() == [0.0] * 4


def test_the_score_is_given_at_the_last_token_and_the_kl_at_each() -> None:
    """Ziegler et al. 2019, eq. 2: R = r - beta log(pi/rho)."""
    logprobs, reference = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, 9.0]]), torch.tensor([[-1.5, -1.5, -3.0]] * 2)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    rewards = token_rewards(torch.tensor([2.0, -1.0]), logprobs, reference, mask, 0.1)
    assert rewards[0].tolist() == pytest.approx([-0.05, 0.05, 2.0])
    assert rewards[1].tolist() == pytest.approx([-0.05, -1.05, 0.0])
    assert rewards.sum(dim=1).tolist() == pytest.approx([2.0 - 0.1 * 0.0, -1.0 - 0.1 * 1.0])


def test_whitening_is_over_the_masked_tokens_of_all_ranks() -> None:
    values, mask = torch.randn(6, 5, dtype=torch.float64), torch.rand(6, 5) > 0.3
    whole = whiten(values, mask, alone)
    chosen = values[mask]
    assert torch.allclose(whole[mask], (chosen - chosen.mean()) / (chosen.std() + 1e-8))
    assert not whole[~mask].any()
    # Two ranks with half of the rows each, whose sums are added up.
    parts = []
    for half in (slice(0, 3), slice(3, 6)):
        other = slice(3, 6) if half.start == 0 else slice(0, 3)
        sums = iter(
            [
                [float(chosen.numel()), float(chosen.sum())],
                [float((chosen - chosen.mean()).square().sum())],
            ]
        )
        parts.append(whiten(values[half], mask[half], lambda *mine, sums=sums: next(sums)))
        assert mask[other].any()
    assert torch.allclose(torch.cat(parts), whole)


def test_a_single_token_is_not_divided_by_nothing() -> None:
    assert whiten(row(3.0), full(row(3.0)), alone).tolist() == [[0.0]]


def test_the_value_loss_takes_the_worse_of_the_value_and_of_what_is_kept_near_the_old_one() -> None:
    """Huang et al. 2024: half of max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2)."""
    for value, old, target, loss, clipped in (
        (1.0, 0.0, 2.0, 0.5 * 1.8**2, True),  # it moved towards the target too fast
        (1.0, 0.0, -2.0, 0.5 * 3.0**2, False),
        (0.1, 0.0, 2.0, 0.5 * 1.9**2, False),
    ):
        found, took_effect = value_loss(row(value), row(old), row(target), 0.2)
        assert (found.item(), bool(took_effect)) == (pytest.approx(loss), clipped)


def test_the_estimate_of_kl_is_never_negative_and_right_on_average() -> None:
    torch.manual_seed(0)
    old, new = torch.log_softmax(torch.randn(2, 6, dtype=torch.float64), dim=1)
    exact = float((old.exp() * (old - new)).sum())
    estimates = approximate_kl(new, old)
    assert (estimates >= 0).all()
    assert float((old.exp() * estimates).sum()) == pytest.approx(exact)


def test_entropy_and_log_probabilities_are_those_of_the_whole_vocabulary() -> None:
    uniform = torch.zeros(1, 1, 7)
    assert entropy_of(uniform).item() == pytest.approx(math.log(7))
    assert logprobs_of(uniform, torch.tensor([[3]])).item() == pytest.approx(-math.log(7))
    logits = torch.randn(2, 3, 7, dtype=torch.float64)
    wanted = torch.distributions.Categorical(logits=logits)
    tokens = torch.randint(7, (2, 3))
    assert torch.allclose(entropy_of(logits), wanted.entropy())
    assert torch.allclose(logprobs_of(logits, tokens), wanted.log_prob(tokens))


def test_updates_end_once_the_mean_of_the_last_three_kls_exceeds_the_threshold() -> None:
    """Mean of .04, .06, .06 is .0533 > .05; two values are too few to tell."""
    stop = KlStop(0.05, 3)
    assert [stop.exceeded(kl) for kl in (0.04, 0.06, 0.06)] == [False, False, True]
    calm = KlStop(0.05, 3)
    assert [calm.exceeded(kl) for kl in (0.9, 0.01, 0.02, 0.03, 0.04)] == [False, False, True, False, False]


def test_explained_variance_is_1_for_the_returns_themselves_and_0_for_their_mean() -> None:
    returns, mask = row(1, 2, 3, 99), torch.tensor([[True, True, True, False]])
    assert explained_variance(returns, returns, mask, alone) == 1
    assert explained_variance(row(2, 2, 2, 0), returns, mask, alone) == pytest.approx(0)
    assert explained_variance(row(3, 2, 1, 0), returns, mask, alone) == pytest.approx(-3)
    assert explained_variance(returns, row(5, 5, 5, 5), mask, alone) == 0
