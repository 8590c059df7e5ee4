"""Llama shapes as a Megatron-core GPT model."""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import get_model_config

from trireme_trainer.engines.interface import EngineConfig, EngineConfigError
from trireme_trainer.engines.megatron.attention import ScaledDotProductAttention


def check_config(config: EngineConfig) -> None:
    """Raise EngineConfigError for what this engine cannot train, with the numbers."""
    model, layout = config.model, config.layout
    if layout.context != 1:
        raise EngineConfigError(f"context parallel size {layout.context}: this engine splits no sequences, use 1")
    for name in ("vocab_size", "num_attention_heads", "num_key_value_heads", "intermediate_size"):
        size = getattr(model, name)
        if size % layout.tensor:
            raise EngineConfigError(f"{name} {size} is not divisible by tensor {layout.tensor}")
    if model.num_hidden_layers % layout.pipeline:
        raise EngineConfigError(
            f"num_hidden_layers {model.num_hidden_layers} is not divisible by pipeline {layout.pipeline}"
        )
    if model.num_attention_heads % model.num_key_value_heads:
        raise EngineConfigError(
            f"num_attention_heads {model.num_attention_heads} is not divisible by "
            f"num_key_value_heads {model.num_key_value_heads}"
        )
    if config.global_batch_size % (config.micro_batch_size * layout.data):
        raise EngineConfigError(
            f"global batch {config.global_batch_size} is not divisible by micro-batch "
            f"{config.micro_batch_size} x data {layout.data}"
        )
    if config.sequence_length > model.max_position_embeddings:
        raise EngineConfigError(
            f"sequence length {config.sequence_length} exceeds max_position_embeddings {model.max_position_embeddings}"
        )


def transformer_config(config: EngineConfig, on_cpu: bool) -> TransformerConfig:
    """The Megatron-core configuration of a Llama model under this layout."""
    model, layout = config.model, config.layout
    bf16 = config.precision == "bf16"
    dtype = torch.bfloat16 if bf16 else torch.float32
    return TransformerConfig(
        num_layers=model.num_hidden_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.intermediate_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_key_value_heads,
        kv_channels=model.attention_head_size,
        normalization="RMSNorm",
        layernorm_epsilon=model.rms_norm_eps,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bf16=bf16,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        calculate_per_token_loss=True,
        # Weights come from `initial.fill`, which knows no layout. Megatron-core's own initialisation still runs
        # because it also marks the parameters that tensor ranks share out, which the gradient norm needs.
        init_method=_leave_unfilled,
        output_layer_init_method=_leave_unfilled,
        embedding_init_method=_leave_unfilled,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=not on_cpu,
        bias_dropout_fusion=False,
        cross_entropy_loss_fusion=not on_cpu,
        deallocate_pipeline_outputs=True,
        recompute_granularity="full" if config.recompute == "full" else None,
        recompute_method="uniform" if config.recompute == "full" else None,
        recompute_num_layers=1 if config.recompute == "full" else None,
    )


def _leave_unfilled(_weight: torch.Tensor) -> None:
    """An initialiser that leaves the work to `initial.fill`."""


def layer_spec() -> ModuleSpec:
    """Megatron-core's local layer with torch's attention kernels in place of its unfused one."""
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    spec.submodules.self_attention.submodules.core_attention = ScaledDotProductAttention
    return spec


def build_model(config: EngineConfig, on_cpu: bool) -> GPTModel:
    """This rank's part of the model, weights not yet filled; parallel_state must be initialised."""
    megatron_config = transformer_config(config, on_cpu)
    model = GPTModel(
        megatron_config,
        layer_spec(),
        vocab_size=config.model.vocab_size,
        max_sequence_length=config.model.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=config.model.tie_word_embeddings,
        position_embedding_type="rope",
        rotary_base=config.model.rope_theta,
    )
    # torch's RMSNorm is made in the default dtype whatever params_dtype says.
    model.to(dtype=megatron_config.params_dtype)
    return model if on_cpu else model.cuda()


def wrap_data_parallel(model: GPTModel) -> DistributedDataParallel:
    """Gradient buffers in fp32, laid out for the distributed optimizer."""
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=True, overlap_grad_reduce=False
    )
    return DistributedDataParallel(get_model_config(model), ddp_config, model)
