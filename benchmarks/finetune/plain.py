"""Supervised fine-tuning as one writes it by hand over trl and peft; nothing of Trireme is imported.

    [torchrun --nproc-per-node N] python -m benchmarks.finetune.plain SETTINGS_JSON OUT_JSON

SETTINGS_JSON: base and examples (paths), order (numbers of the examples, as they are trained), method (full or lora),
rank, learningRate, warmupSteps, steps, microBatchSize, accumulationSteps, seed. Rank 0 writes to OUT_JSON the loss and
the Unix time of each step.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

PROMPT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
"""Taori et al. 2023 (Stanford Alpaca)."""


class Keep(TrainerCallback):  # type: ignore[misc]
    """Keeps loss and time of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """A step is complete."""
        if "loss" in logs:
            self.steps.append({"loss": logs["loss"], "at": time.time()})


def tokenised(path: Path, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Tokens of prompt and answer, and labels of the answer alone."""
    rows = []
    for line in path.read_text().splitlines():
        record = json.loads(line)
        prompt = tokenizer(PROMPT.format(**record), add_special_tokens=False)["input_ids"]
        answer = [*tokenizer(record["output"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return rows


def main() -> None:
    """Train."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    tokenizer = AutoTokenizer.from_pretrained(settings["base"])
    rows = tokenised(Path(settings["examples"]), tokenizer)
    model = AutoModelForCausalLM.from_pretrained(settings["base"], dtype=torch.float32)
    adapter = None
    if settings["method"] == "lora":
        rank = settings["rank"]
        adapter = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=rank, target_modules="all-linear")
    kept = Keep()
    torch.manual_seed(settings["seed"])
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(Path(sys.argv[2]).with_suffix(".trainer")),
            max_steps=settings["steps"],
            per_device_train_batch_size=settings["microBatchSize"],
            gradient_accumulation_steps=settings["accumulationSteps"],
            learning_rate=settings["learningRate"],
            lr_scheduler_type="cosine",
            warmup_steps=settings["warmupSteps"],
            max_grad_norm=1.0,
            weight_decay=0.0,
            optim="adamw_torch",
            seed=settings["seed"],
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            train_sampling_strategy="sequential",
            dataset_kwargs={"skip_prepare_dataset": True},
            dataloader_drop_last=True,
            ddp_find_unused_parameters=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([rows[number] for number in settings["order"]]),
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[kept],
    )
    trainer.train()
    if int(os.environ.get("RANK", "0")) == 0:
        Path(sys.argv[2]).write_text(json.dumps(kept.steps))
    if torch.distributed.is_initialized():
        # A rank that ends while another still holds a connection to it would abort that one.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
