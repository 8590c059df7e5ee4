"""Seconds from a SIGKILL to the next step that had not been done before, beside torchrun with a hand-written resume."""
