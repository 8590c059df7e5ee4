"""What messages of torch, gloo, NCCL and CUDA tell about the cause: a peer that went away, or a broken device."""

from __future__ import annotations

import re

_PEER_GONE = re.compile(
    r"gloo/transport|connection closed by peer|connection reset|connection refused|broken pipe|socket closed|"
    r"timed out waiting \d+ms|nccl (communicator|error)|remote process exited",
    re.IGNORECASE,
)
_WATCHDOG = re.compile(r"ProcessGroupNCCL|NCCL watchdog|watchdog thread", re.IGNORECASE)
# The list in docs/recovery.md. An illegal memory access is not on it: that is a program's mistake.
_BROKEN_DEVICE = re.compile(
    r"(?:CUDA error: |Cuda failure (?:\d+ )?')"
    r"(?:uncorrectable (?:ECC|NVLink) error|unspecified launch failure|an illegal instruction|hardware stack error|"
    r"CUDA-capable device\(s\) is/are busy|no CUDA-capable device)|"
    r"fallen off the bus|GPU is lost|NVRM: Xid",
    re.IGNORECASE,
)


def tells_of_lost_peer(text: str) -> bool:
    """Whether a collective failed because a peer has gone."""
    return _PEER_GONE.search(text) is not None


def tells_of_aborted_collective(text: str) -> bool:
    """Whether NCCL's watchdog ended the process, as it does some time after a peer has gone."""
    return _WATCHDOG.search(text) is not None


def tells_of_broken_device(text: str) -> bool:
    """Whether the accelerator itself failed."""
    return _BROKEN_DEVICE.search(text) is not None
