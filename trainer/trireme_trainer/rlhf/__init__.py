"""Aligning a model with preferences: reward models, DPO, GRPO, PPO."""
