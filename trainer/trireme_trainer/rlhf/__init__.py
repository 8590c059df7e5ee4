"""Alignment with preferences: what an RLHFJob runs."""
