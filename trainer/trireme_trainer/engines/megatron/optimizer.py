"""AdamW over Megatron-core's distributed optimizer: state, norm, clipping, one step."""

from __future__ import annotations

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from trireme_trainer.engines.interface import EngineConfig
from trireme_trainer.engines.megatron import adam_step


class Optimizer:
    """Megatron-core's distributed optimizer at every data-parallel size, so checkpoints have one form."""

    def __init__(self, config: EngineConfig, model: DistributedDataParallel) -> None:
        settings = config.optimizer
        chained = get_megatron_optimizer(
            MegatronOptimizerConfig(
                optimizer="adam",
                lr=settings.learning_rate,
                min_lr=config.schedule.min_learning_rate,
                weight_decay=settings.weight_decay,
                adam_beta1=settings.beta1,
                adam_beta2=settings.beta2,
                adam_eps=settings.eps,
                clip_grad=settings.clip_grad,
                bf16=config.precision == "bf16",
                params_dtype=torch.bfloat16 if config.precision == "bf16" else torch.float32,
                use_distributed_optimizer=True,
            ),
            [model],
        )
        (self.distributed,) = chained.chained_optimizers
        assert isinstance(self.distributed, DistributedOptimizer)
        self.model = model
        self.clip_grad = settings.clip_grad
        self.weight_decay = settings.weight_decay
        if not adam_step.in_groups(self.adam):
            for group in self.adam.param_groups:
                group["fused"] = True
        self.set_adam_step(0)

    @property
    def adam(self) -> torch.optim.Optimizer:
        """torch's AdamW, or another's FusedAdam, over this rank's fp32 shards."""
        adam: torch.optim.Optimizer = self.distributed.optimizer
        return adam

    @property
    def adam_step(self) -> int:
        """Updates that Adam's bias correction has counted."""
        return adam_step.read(self.adam)

    def set_adam_step(self, step: int) -> None:
        """Make the moments exist and set the count."""
        adam_step.write(self.adam, step)

    def forget_adam_step(self) -> None:
        """Remove the counters, which Megatron-core's load path cannot see beside the moments."""
        adam_step.forget(self.adam)

    def grad_square(self) -> torch.Tensor:
        """Squared L2 norm of the gradients of which this rank has charge; summed over all ranks it is the model's."""
        self.distributed.prepare_grads()
        gradients = self.distributed.get_main_grads_for_grad_norm()
        if not gradients:
            return torch.zeros((), device=next(self.model.parameters()).device)
        return torch.nn.utils.get_total_norm(gradients, 2.0).square()

    def step(self, learning_rate: float, grad_norm: float) -> None:
        """Clip the gradients, whose norm over all ranks is given, update and publish the new weights."""
        self._clip(grad_norm)
        for group in self.adam.param_groups:
            group["lr"] = learning_rate * group["lr_mult"]
            # Megatron-core marks norms by a multiplier of 0, which only its own scheduler would apply.
            group["weight_decay"] = self.weight_decay * group["wd_mult"]
        self.distributed.step_with_ready_grads()

    def adopt_model_parameters(self) -> None:
        """Make the fp32 shards those of the model's weights, which someone has just filled."""
        self.distributed.reload_model_params()

    def publish_main_parameters(self) -> None:
        """Make the model's weights those of the fp32 shards, on every data-parallel rank."""
        self.distributed._copy_main_params_to_model_params()
        self.model.start_param_sync(force_sync=True)

    def _clip(self, grad_norm: float) -> None:
        if self.clip_grad <= 0.0 or grad_norm <= self.clip_grad:
            return
        gradients = [p.grad for p in self.distributed.get_parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, self.clip_grad / (grad_norm + 1e-6))
