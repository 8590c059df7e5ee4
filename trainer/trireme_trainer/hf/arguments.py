"""The settings that all of transformers' and trl's trainers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trireme_trainer.hf.config import HFConfig
from trireme_trainer.hf.ranks import zero_config

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def common_arguments(config: HFConfig[Any], total_steps: int, directory: Path, *, zero: bool) -> dict[str, Any]:
    """For the arguments of a trainer; `zero`: whether what is trained is shared out as the plan says."""
    training, plan = config.spec.training, config.plan
    optimizer, bf16 = training.optimizer, training.precision == "bf16"
    deepspeed = None
    if plan.zero_stage and zero:
        deepspeed = zero_config(
            plan.zero_stage,
            micro=plan.micro_batch_size,
            accumulation=plan.accumulation_steps,
            world_size=plan.data,
            clip=training.gradient_clip,
            bf16=bf16,
        )
    return {
        "output_dir": str(directory),
        "per_device_train_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation_steps,
        "max_steps": total_steps,
        "learning_rate": optimizer.learning_rate,
        "adam_beta1": optimizer.beta1,
        "adam_beta2": optimizer.beta2,
        "adam_epsilon": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "optim": "adamw_torch",
        "lr_scheduler_type": SCHEDULES[training.schedule.kind],
        "warmup_steps": round(training.schedule.warmup_ratio * total_steps),
        "max_grad_norm": training.gradient_clip,
        "bf16": bf16,
        "fp16": False,
        "seed": training.seed,
        "gradient_checkpointing": training.recompute,
        "deepspeed": deepspeed,
        "use_cpu": config.device == "cpu",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_drop_last": True,
        "ddp_find_unused_parameters": False,
    }
