"""One PPO update of a language model, written from the papers sequence by sequence, without a batch or padding.

Schulman et al. 2017 (clipped surrogate), Schulman et al. 2016 (advantages), Ziegler et al. 2019 (KL in the reward),
Huang et al. 2024 (clipped values, whitening), Kingma and Ba 2015 (Adam). Shares no function with the product.
"""

import math
import statistics
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Settings:
    kl_coefficient: float
    clip: float
    value_clip: float
    value_coefficient: float
    entropy_coefficient: float
    discount: float
    gae: float
    epochs: int
    whiten: bool
    temperature: float
    learning_rate: float
    beta1: float
    beta2: float
    adam_eps: float
    max_norm: float


def per_token(model: Any, head: Any, prompt: list[int], answer: list[int], temperature: float) -> Any:
    """Log-probability, value and entropy at each token of the answer."""
    out = model(input_ids=torch.tensor([prompt + answer]), output_hidden_states=True)
    logs, values, entropies = [], [], []
    for place, token in enumerate(answer):
        state = len(prompt) + place - 1
        distribution = torch.log_softmax(out.logits[0, state] / temperature, dim=0)
        logs.append(distribution[token])
        entropies.append(-(distribution.exp() * distribution).sum())
        if head is not None:
            values.append(head.weight[0] @ out.hidden_states[-1][0, state] + head.bias[0])
    return logs, values, entropies


def advantages_of(rewards: list[float], values: list[float], discount: float, gae: float) -> list[float]:
    """The sum of (discount * gae)^l delta_{t+l}, as the paper writes it."""
    ahead = [*values[1:], 0.0]
    deltas = [r + discount * n - v for r, n, v in zip(rewards, ahead, values, strict=True)]
    return [
        sum((discount * gae) ** (later - t) * deltas[later] for later in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


def update(
    model: Any, head: Any, reference: Any, prompts: list[list[int]], answers: list[list[int]], scores: list[float],
    settings: Settings,
) -> list[float]:  # fmt: skip
    """Change model and head in place; the loss of each epoch."""
    olds, old_values, advantages, targets = [], [], [], []
    with torch.no_grad():
        for prompt, answer, score in zip(prompts, answers, scores, strict=True):
            logs, values, _ = per_token(model, head, prompt, answer, settings.temperature)
            held, _, _ = per_token(reference, None, prompt, answer, settings.temperature)
            rewards = [-settings.kl_coefficient * float(a - b) for a, b in zip(logs, held, strict=True)]
            rewards[-1] += score
            plain = [float(v) for v in values]
            gained = advantages_of(rewards, plain, settings.discount, settings.gae)
            olds.append([float(x) for x in logs])
            old_values.append(plain)
            advantages.append(gained)
            targets.append([a + v for a, v in zip(gained, plain, strict=True)])
    if settings.whiten:
        everything = [a for row in advantages for a in row]
        mean, deviation = statistics.fmean(everything), statistics.stdev(everything)
        advantages = [[(a - mean) / (deviation + 1e-8) for a in row] for row in advantages]
    parameters = [*model.parameters(), *head.parameters()]
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    losses = []
    for epoch in range(1, settings.epochs + 1):
        terms = []
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            logs, values, entropies = per_token(model, head, prompt, answer, settings.temperature)
            for t in range(len(answer)):
                terms.append(
                    token_loss(
                        logs[t], values[t], entropies[t], olds[number][t], old_values[number][t],
                        advantages[number][t], targets[number][t], settings,
                    )
                )  # fmt: skip
        loss = sum(terms) / len(terms)
        losses.append(as_float(loss))
        adam(parameters, torch.autograd.grad(loss, parameters), first, second, epoch, settings)
    return losses


def token_loss(
    log: Any, value: Any, entropy: Any, old: float, old_value: float, advantage: float, target: float,
    settings: Settings,
) -> Any:  # fmt: skip
    """Minus the clipped surrogate, plus the clipped value error, less the entropy bonus, of one token."""
    ratio = (log - old).exp()
    low, high = 1 - settings.clip, 1 + settings.clip
    surrogate = min(ratio * advantage, ratio.clamp(low, high) * advantage, key=as_float)
    kept = min(max(value, value.detach() * 0 + old_value - settings.value_clip, key=as_float),
               value.detach() * 0 + old_value + settings.value_clip, key=as_float)  # fmt: skip
    error = max((value - target) ** 2, (kept - target) ** 2, key=as_float) / 2
    return -surrogate + settings.value_coefficient * error - settings.entropy_coefficient * entropy


def as_float(tensor: Any) -> float:
    return float(tensor.detach())


def adam(parameters: Any, gradients: Any, first: Any, second: Any, count: int, settings: Settings) -> None:
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    scale = min(1.0, settings.max_norm / (norm + 1e-6))
    with torch.no_grad():
        for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
            m.mul_(settings.beta1).add_((1 - settings.beta1) * scale * g)
            v.mul_(settings.beta2).add_((1 - settings.beta2) * (scale * g) ** 2)
            unbiased = m / (1 - settings.beta1**count)
            spread = (v / (1 - settings.beta2**count)).sqrt()
            p.sub_(settings.learning_rate * unbiased / (spread + settings.adam_eps))
