"""The updates with one rollout: epochs of mini-batches of micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from trireme.resources.algorithms import Ppo
from trireme_trainer.data.examples import IGNORED
from trireme_trainer.metrics.parts import FORWARD_BACKWARD, OPTIMIZER, PartClock
from trireme_trainer.rlhf.ppo.estimates import KlStop, Total, explained_variance
from trireme_trainer.rlhf.ppo.losses import approximate_kl, entropy_of, logprobs_of, policy_loss, value_loss
from trireme_trainer.rlhf.ppo.model import ActorCritic, position_ids
from trireme_trainer.rlhf.ppo.optimizer import Updates
from trireme_trainer.rlhf.ppo.rollout import Rollout


@dataclass(frozen=True)
class LabelledRow:
    """A row of the language-model loss beside PPO's: `labels` as transformers has them."""

    tokens: Sequence[int]
    labels: Sequence[int]


Ptx = Callable[[int], Sequence[LabelledRow]]
"""This rank's rows for the update with this number since the start of the run."""


@dataclass
class Sums:
    """Over the masked tokens of one rank's part of an update; `ptx` over its labels."""

    tokens: float = 0.0
    policy_loss: float = 0.0
    value_loss: float = 0.0
    entropy: float = 0.0
    approximate_kl: float = 0.0
    clipped: float = 0.0
    values_clipped: float = 0.0
    labels: float = 0.0
    ptx: float = 0.0

    def over(self, total: Total) -> Sums:
        """Of all ranks. Collective."""
        return Sums(*total(*(getattr(self, f.name) for f in fields(self))))


@dataclass
class UpdateMetrics:
    """Means over all updates with a rollout."""

    updates: int = 0
    loss: float = 0.0
    policy_loss: float = 0.0
    value_loss: float = 0.0
    entropy: float = 0.0
    approximate_kl: float = 0.0
    clip_fraction: float = 0.0
    value_clip_fraction: float = 0.0
    ptx_loss: float = 0.0
    grad_norm: float = 0.0
    """Of the last update, before clipping."""
    kl_by_update: list[float] = field(default_factory=list)

    def add(self, sums: Sums, loss: float, grad_norm: float) -> None:
        """Take an update into the means."""
        self.updates += 1
        tokens, labels = max(1.0, sums.tokens), max(1.0, sums.labels)
        for name, value in (
            ("loss", loss),
            ("policy_loss", sums.policy_loss / tokens),
            ("value_loss", sums.value_loss / tokens),
            ("entropy", sums.entropy / tokens),
            ("approximate_kl", sums.approximate_kl / tokens),
            ("clip_fraction", sums.clipped / tokens),
            ("value_clip_fraction", sums.values_clipped / tokens),
            ("ptx_loss", sums.ptx / labels),
        ):
            setattr(self, name, getattr(self, name) + (value - getattr(self, name)) / self.updates)
        self.kl_by_update.append(sums.approximate_kl / tokens)
        self.grad_norm = grad_norm


class Learner:
    """Improves the policy with rollouts."""

    def __init__(
        self,
        actor: ActorCritic,
        updates: Updates,
        how: Ppo,
        *,
        seed: int,
        micro_batch_size: int,
        total: Total,
        ptx: Ptx | None = None,
        alive: Callable[[], None] = lambda: None,
        parts: PartClock | None = None,
    ) -> None:
        self._actor, self._updates, self._how = actor, updates, how
        self._parts = parts or PartClock("cpu")
        self._seed, self._micro = seed, micro_batch_size
        self._total, self._ptx, self._alive = total, ptx, alive

    def learn(self, rollout: Rollout, step: int, first_sample: int, learning_rate: float) -> UpdateMetrics:
        """All updates with a rollout; `step` steps were complete before, `first_sample` is the number of this rank's
        first completion in the global batch. Collective.
        """
        how, metrics = self._how, UpdateMetrics()
        stop = KlStop(how.kl_stop.threshold, how.kl_stop.patience) if how.kl_stop is not None else None
        for epoch in range(how.epochs):
            parts = mini_batches(len(rollout), how.mini_batches, self._seed, step, epoch, first_sample)
            for number, rows in enumerate(parts):
                update = (step * how.epochs + epoch) * how.mini_batches + number
                self._update(rollout, torch.tensor(rows), update, learning_rate, metrics)
                if stop is not None and stop.exceeded(metrics.kl_by_update[-1]):
                    return metrics
        return metrics

    def _update(
        self, rollout: Rollout, rows: torch.Tensor, update: int, learning_rate: float, metrics: UpdateMetrics
    ) -> None:
        how, rows = self._how, rows.to(rollout.logprobs.device)
        others = self._ptx(update) if self._ptx is not None else ()
        labels = float(sum(label != IGNORED for row in others for label in row.labels[1:]))
        tokens, labels = self._total(float(rollout.sequences.mask[rows].sum()), labels)
        sums, chunks = Sums(), torch.split(rows, self._micro)
        # As many pieces as the rollout's, so that every backward pass has both losses.
        pieces = _pieces(others, len(chunks))
        for chosen, piece in zip(chunks, pieces, strict=True):
            with self._parts.part(FORWARD_BACKWARD, busy=True):
                part = self._loss(rollout, chosen, tokens, sums)
                if piece and how.ptx is not None:
                    part = part + how.ptx.coefficient * self._ptx_loss(piece, labels, sums)
            with self._parts.part(FORWARD_BACKWARD):
                self._updates.backward(part)
            self._alive()
        with self._parts.part(OPTIMIZER):
            grad_norm = self._updates.step(learning_rate)
        whole = sums.over(self._total)
        loss = whole.policy_loss + how.value_coefficient * whole.value_loss - how.entropy_coefficient * whole.entropy
        ptx = how.ptx.coefficient * whole.ptx / max(1.0, whole.labels) if how.ptx is not None else 0.0
        metrics.add(whole, loss / max(1.0, whole.tokens) + ptx, grad_norm)

    def _loss(self, rollout: Rollout, chosen: torch.Tensor, tokens: float, sums: Sums) -> torch.Tensor:
        """This micro-batch's part of the mean over the tokens of the update, of all ranks."""
        how, sequences = self._how, rollout.sequences.rows(chosen)
        mask = sequences.mask
        logits, values = self._actor(sequences)
        logprobs = logprobs_of(logits, sequences.completions)
        # What stands outside the mask may be anything: a ratio of it must not overflow, not even in a gradient times 0.
        old = torch.where(mask, rollout.logprobs[chosen], logprobs.detach())
        policy, clipped = policy_loss(logprobs, old, rollout.advantages[chosen], how.clip_range)
        value, values_clipped = value_loss(
            values, rollout.values[chosen], rollout.returns[chosen], how.value_clip_range
        )
        entropy = entropy_of(logits) if how.entropy_coefficient else entropy_of(logits.detach())
        whole = policy + how.value_coefficient * value - how.entropy_coefficient * entropy
        for name, found in (
            ("policy_loss", policy),
            ("value_loss", value),
            ("entropy", entropy),
            ("approximate_kl", approximate_kl(logprobs, old)),
            ("clipped", clipped),
            ("values_clipped", values_clipped),
        ):
            setattr(sums, name, getattr(sums, name) + float(found.detach()[mask].double().sum()))
        sums.tokens += float(mask.sum())
        return torch.where(mask, whole, 0.0).sum() / max(1.0, tokens)

    def _ptx_loss(self, rows: Sequence[LabelledRow], labels: float, sums: Sums) -> torch.Tensor:
        """These rows' part of the mean cross entropy over the update's labels of all ranks (Ouyang et al. 2022)."""
        width, device = max(len(row.tokens) for row in rows), self._actor.value_head.weight.device
        tokens = torch.zeros((len(rows), width), dtype=torch.long)
        attention, wanted = torch.zeros_like(tokens), torch.full_like(tokens, IGNORED)
        for number, row in enumerate(rows):
            tokens[number, : len(row.tokens)] = torch.tensor(row.tokens)
            attention[number, : len(row.tokens)] = 1
            wanted[number, : len(row.labels)] = torch.tensor(row.labels)
        tokens, attention, wanted = tokens.to(device), attention.to(device), wanted.to(device)
        with self._actor.precision():
            logits = self._actor.policy(
                input_ids=tokens, attention_mask=attention, position_ids=position_ids(attention), use_cache=False
            ).logits
        summed = cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), wanted[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        sums.ptx += float(summed.detach())
        sums.labels += float((wanted[:, 1:] != IGNORED).sum())
        return summed / max(1.0, labels)


def mini_batches(rows: int, parts: int, seed: int, step: int, epoch: int, first_sample: int) -> Iterator[Sequence[int]]:
    """This rank's rows of each mini-batch of an epoch.

    Of each `parts` samples in a row of the global batch each mini-batch has one, at random: so which samples are
    learned from together does not depend on how they are shared out over ranks.
    """
    if rows % parts or first_sample % parts:
        raise ValueError(f"{rows} completions from number {first_sample} cannot be cut into {parts} mini-batches")
    shuffled = [
        np.random.Generator(np.random.PCG64([seed, step, epoch, (first_sample + begin) // parts])).permutation(parts)
        + begin
        for begin in range(0, rows, parts)
    ]
    for number in range(parts):
        yield [int(group[number]) for group in shuffled]


def _pieces(rows: Sequence[LabelledRow], count: int) -> list[Sequence[LabelledRow]]:
    """The rows in so many pieces of nearly equal size."""
    ends = [round(len(rows) * (number + 1) / count) for number in range(count)]
    return [rows[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def rollout_metrics(rollout: Rollout, total: Total) -> dict[str, float]:
    """Means over the completions of all ranks. Collective.

    reward, and each reward under rewards/<name>; kl: mean over tokens of log(pi/rho), in nats; length in tokens;
    cutFraction: share that the limit of tokens ended.
    """
    mask, done, scores = rollout.sequences.mask, rollout.completions, rollout.scores
    kl = torch.where(mask, rollout.logprobs - rollout.reference, 0.0)
    names = list(scores.by_name)
    count, tokens, kls, *sums = total(
        float(len(rollout)),
        float(mask.sum()),
        float(kl.double().sum()),
        sum(scores.total),
        float(sum(done.lengths)),
        float(len(done.ended) - sum(done.ended)),
        *(sum(scores.by_name[name]) for name in names),
    )
    keys = ["reward", "length", "cutFraction", *(f"rewards/{name}" for name in names)]
    found = {key: value / max(1.0, count) for key, value in zip(keys, sums, strict=True)}
    found["kl"] = kls / max(1.0, tokens)
    found["explainedVariance"] = explained_variance(rollout.values, rollout.returns, mask, total)
    return found
