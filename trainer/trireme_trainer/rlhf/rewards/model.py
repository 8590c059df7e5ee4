"""A reward model as a scorer: one number for a prompt with its completion (Ouyang et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trireme_trainer.rlhf.rewards.batch import Completions
from trireme_trainer.rlhf.rewards.errors import RewardUnusable


class RewardModel:
    """Scores with a sequence classifier of one label, from a folder in Hugging Face layout."""

    def __init__(
        self, name: str, directory: Path, *, device: torch.device, dtype: torch.dtype, batch_size: int
    ) -> None:
        """Raises RewardUnusable."""
        self._name, self._device, self._batch_size = name, device, batch_size
        try:
            tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                directory, dtype=dtype, trust_remote_code=False, output_loading_info=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise RewardUnusable(name, f"{directory.name} is no reward model that loads: {error}") from error
        missing = sorted(report["missing_keys"])
        if missing:
            raise RewardUnusable(name, f"the model has no {', '.join(missing)}: it is no reward model")
        if model.config.num_labels != 1:
            raise RewardUnusable(name, f"the model has {model.config.num_labels} labels, a reward model has 1")
        if tokenizer.eos_token_id is None:
            raise RewardUnusable(name, "its tokenizer has no end-of-text token")
        self._tokenizer, self._end = tokenizer, int(tokenizer.eos_token_id)
        self._pad = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self._end)
        # The head reads the position of the last token that is no padding; told by its id, which is set here.
        self._model: Any = model.to(device).eval().requires_grad_(False)
        self._limit = int(getattr(model.config, "max_position_embeddings", 0) or 0)

    @torch.no_grad()
    def score(self, batch: Completions, alive: Callable[[], None]) -> list[float]:
        """Scores in the order of the batch. Rows are padded on the right and masked."""
        rows = [self._tokens(batch, number) for number in range(len(batch))]
        scores: list[float] = []
        for begin in range(0, len(rows), self._batch_size):
            scores += self._forward(rows[begin : begin + self._batch_size])
            alive()
        return scores

    def _tokens(self, batch: Completions, number: int) -> list[int]:
        text, messages = batch.texts[number], batch.messages[number]
        if messages is not None and self._tokenizer.chat_template:
            said = [*messages, {"role": "assistant", "content": text}]
            whole = self._tokenizer.apply_chat_template(said, tokenize=False)
            ids = list(self._tokenizer(whole, add_special_tokens=False)["input_ids"])
        else:
            ids = list(self._tokenizer(batch.prompts[number] + text, add_special_tokens=False)["input_ids"])
        if batch.ended[number] and ids[-1:] != [self._end]:
            ids.append(self._end)
        if self._limit and len(ids) > self._limit:
            ids = ids[-self._limit :]  # its judgement is read at the end
        return ids or [self._end]

    def _forward(self, rows: list[list[int]]) -> list[float]:
        width = max(map(len, rows))
        tokens = torch.full((len(rows), width), self._pad, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        tokens, mask = tokens.to(self._device), mask.to(self._device)
        hidden = self._model.base_model(input_ids=tokens, attention_mask=mask).last_hidden_state
        last = mask.sum(dim=1) - 1
        # Not the classifier's own pooling: that finds the end by the padding token, which may be the end-of-text token.
        values = self._head(hidden[torch.arange(len(rows), device=self._device), last])
        return [float(value) for value in values.squeeze(-1).float().cpu()]

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self._model.score(hidden)
        return values

    def close(self) -> None:
        """Free the model's memory."""
        self._model = None
