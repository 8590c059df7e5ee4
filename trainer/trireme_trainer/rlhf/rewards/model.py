"""A reward model as a scorer: one number for a prompt with its completion (Ouyang et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trireme_trainer.data.examples import Invalid, render_chat
from trireme_trainer.hf.models import BaseUnusable, check_safetensors
from trireme_trainer.rlhf.rewards.batch import Completions, Messages
from trireme_trainer.rlhf.rewards.errors import RewardRaised, RewardUnusable


class RewardModel:
    """Scores with a sequence classifier of one label, from a folder in Hugging Face layout.

    It reads what a reward model of an RLHFJob was taught on: prompt and answer tokenised apart, the end-of-text token
    behind an answer that is over; and it takes the classifier's own answer, from the place where that looks for it.
    """

    def __init__(
        self, name: str, directory: Path, *, device: torch.device, dtype: torch.dtype, batch_size: int
    ) -> None:
        """Raises RewardUnusable."""
        self._name, self._device, self._batch_size = name, device, batch_size
        try:
            check_safetensors(directory)
            tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                directory, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, BaseUnusable) as error:
            raise RewardUnusable(name, f"{directory.name} is no reward model that loads: {error}") from error
        missing = sorted(report["missing_keys"])
        if missing:
            raise RewardUnusable(name, f"the model has no {', '.join(missing)}: it is no reward model")
        if model.config.num_labels != 1:
            raise RewardUnusable(name, f"the model has {model.config.num_labels} labels, a reward model has 1")
        if tokenizer.eos_token_id is None:
            raise RewardUnusable(name, "its tokenizer has no end-of-text token")
        self._tokenizer, self._end = tokenizer, int(tokenizer.eos_token_id)
        text = model.config.get_text_config()
        if getattr(text, "pad_token_id", None) is None:  # by which the classifier finds a row's last token
            text.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self._end
        self._pad, text.use_cache = int(text.pad_token_id), False
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
        asked, said = batch.prompts[number], batch.texts[number]
        messages = batch.messages[number]
        if messages is not None and self._tokenizer.chat_template:
            asked, said = self._rendered(messages, said)
        ids = [*self._ids(asked), *self._ids(said)]
        if batch.ended[number] and ids[-1:] != [self._end]:
            ids.append(self._end)
        if self._limit and len(ids) > self._limit:
            ids = ids[-self._limit :]  # its judgement is read at the end
        return ids or [self._end]

    def _rendered(self, messages: Messages, said: str) -> tuple[str, str]:
        """(what was asked, what was answered) as this model's template has it. Raises RewardRaised."""
        template, answer = self._tokenizer.chat_template, {"role": "assistant", "content": said}
        try:
            asked = render_chat(self._tokenizer, template, messages, ask=True)
            whole = render_chat(self._tokenizer, template, [*messages, answer])
        except Invalid as error:
            raise RewardRaised(self._name, str(error), str(messages)) from error
        return (asked, whole[len(asked) :]) if whole.startswith(asked) else ("", whole)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _forward(self, rows: list[list[int]]) -> list[float]:
        width = max(map(len, rows))
        tokens = torch.full((len(rows), width), self._pad, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        found = self._model(input_ids=tokens.to(self._device), attention_mask=mask.to(self._device))
        return [float(value) for value in found.logits[:, 0].float().cpu()]

    def close(self) -> None:
        """Free the model's memory."""
        self._model = None
