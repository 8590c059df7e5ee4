"""How a rank's run can end badly, and which of its exceptions only tell of another rank's end."""

from __future__ import annotations

import re

from trireme.protocol import FailureKind
from trireme.protocol.messages import NAN_EXIT_CODE, RESTORE_EXIT_CODE
from trireme_trainer.disk import is_disk_failure


class NaNLoss(Exception):
    """Loss or gradient norm is not a finite number; nothing of it is saved."""


class RestoreFailed(Exception):
    """The recorded checkpoint cannot be loaded on this node."""


_VICTIM_TYPES = {"DistBackendError", "DistNetworkError", "DistStoreError"}
_VICTIM_TEXT = re.compile(
    r"gloo/transport|connection closed by peer|connection reset|connection refused|broken pipe|socket closed|"
    r"timed out waiting \d+ms|nccl (communicator|error)|remote process exited",
    re.IGNORECASE,
)


def is_victim(error: BaseException) -> bool:
    """Whether an exception is what a collective raises when a peer has gone."""
    seen: BaseException | None = error
    while seen is not None:
        if type(seen).__name__ in _VICTIM_TYPES:
            return True
        if isinstance(seen, RuntimeError | ConnectionError) and _VICTIM_TEXT.search(str(seen)):
            return True
        seen = seen.__cause__
    return False


def classify_exception(error: BaseException) -> tuple[FailureKind, int]:
    """(kind, exit code) for an exception that ends a rank."""
    if isinstance(error, NaNLoss):
        return FailureKind.NAN_LOSS, NAN_EXIT_CODE
    if isinstance(error, RestoreFailed):
        return FailureKind.RESTORE, RESTORE_EXIT_CODE
    if is_disk_failure(error):
        return FailureKind.LOCAL_DISK, 1
    return (FailureKind.VICTIM if is_victim(error) else FailureKind.EXCEPTION), 1
