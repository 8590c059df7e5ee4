"""Peak memory of a rank."""

from __future__ import annotations

import resource


def peak_memory_bytes(device: str) -> int:
    """The most this process ever held: of its device's memory as torch allocated it, or on CPUs resident memory."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
