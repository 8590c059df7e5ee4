"""Checkpoints in the object store: upload, two-phase commit, verification, retention."""
