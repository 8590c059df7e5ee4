"""Model FLOPs utilisation on one CUDA device, beside a bare loop over the same Megatron-core model."""
