"""Tokens per second of a whole job, beside a bare loop over the same model and layout on the same idle cluster."""
