"""Policy and value in one model: the language model with a scalar head on its last hidden states."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trireme_trainer.rlhf.ppo.losses import logprobs_of


@dataclass(frozen=True)
class Sequences:
    """Prompts, padded on the left to one length, with completions, padded on the right to another."""

    tokens: torch.Tensor
    """[batch, prompt + completion]"""
    attention: torch.Tensor
    """[batch, prompt + completion], 1 where there is a token."""
    completion_tokens: int
    """Width of the completions."""

    @property
    def completions(self) -> torch.Tensor:
        """[batch, completion]"""
        return self.tokens[:, -self.completion_tokens :]

    @property
    def mask(self) -> torch.Tensor:
        """[batch, completion], True at drawn tokens."""
        return self.attention[:, -self.completion_tokens :].bool()

    def rows(self, chosen: torch.Tensor) -> Sequences:
        """Some rows, as wide as before."""
        return Sequences(self.tokens[chosen], self.attention[chosen], self.completion_tokens)


def position_ids(attention: torch.Tensor) -> torch.Tensor:
    """Positions that padding does not count in."""
    return (attention.long().cumsum(dim=1) - 1).clamp(min=0)


class ActorCritic(nn.Module):
    """A causal language model, perhaps with an adapter, and a value for each position.

    The value head begins at 0 and shares the model's trunk: its loss trains the trunk as well. Dropout is off, so that
    the probabilities that were drawn from can be computed again.
    """

    def __init__(self, policy: Any, temperature: float = 1.0, *, bf16: bool = False) -> None:
        """`bf16`: compute in bfloat16 by autocast; the value head stays in float32."""
        super().__init__()
        self.policy, self.config = policy, policy.config
        hidden, device = policy.config.get_text_config().hidden_size, policy.get_input_embeddings().weight.device
        self.value_head = nn.Linear(hidden, 1, device=device, dtype=torch.float32)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self._temperature, self._bf16 = temperature, bf16
        without_dropout(self)

    def precision(self) -> torch.autocast:
        """What the policy computes in, for one pass: the library keeps cast weights until the context ends, also where
        an optimizer has changed them since.
        """
        return torch.autocast(self.value_head.weight.device.type, torch.bfloat16, enabled=self._bf16)

    def forward(self, sequences: Sequences) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits divided by the temperature [batch, completion, vocabulary], values [batch, completion]).

        At each drawn token's place stands what was known before it was drawn.
        """
        count = sequences.completion_tokens
        with self.precision():
            found = self.policy(
                input_ids=sequences.tokens,
                attention_mask=sequences.attention,
                position_ids=position_ids(sequences.attention),
                logits_to_keep=count + 1,
                output_hidden_states=True,
                use_cache=False,
            )
        logits = found.logits[:, :-1] / self._temperature
        hidden = found.hidden_states[-1][:, -count - 1 : -1]
        return logits, self.value_head(hidden.to(self.value_head.weight.dtype)).squeeze(-1)

    def without_adapter(self) -> AbstractContextManager[Any]:
        """The policy as it was at the start, where an adapter is trained."""
        disable = getattr(self.policy, "disable_adapter", None)
        return nullcontext() if disable is None else disable()


def without_dropout(model: nn.Module) -> None:
    """Turn dropout off, in training mode too."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


class Reference:
    """The frozen model that the policy is held at."""

    def __init__(
        self, actor: ActorCritic, model: Any | None = None, temperature: float = 1.0, *, bf16: bool = False
    ) -> None:
        """`model`: None for the actor's policy without its adapter."""
        self._actor, self._own = actor, None
        if model is not None:
            self._own = ActorCritic(model.eval().requires_grad_(False), temperature, bf16=bf16)

    @torch.no_grad()
    def logprobs(self, sequences: Sequences) -> torch.Tensor:
        """Of the drawn tokens, [batch, completion]."""
        if self._own is not None:
            logits, _ = self._own(sequences)
        else:
            with self._actor.without_adapter():
                logits, _ = self._actor(sequences)
        return logprobs_of(logits, sequences.completions)
