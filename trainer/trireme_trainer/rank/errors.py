"""How a rank's run can end badly, and which of its exceptions only tell of another rank's end."""

from __future__ import annotations

from trireme.protocol import FailureKind
from trireme.protocol.messages import NAN_EXIT_CODE, RESTORE_EXIT_CODE
from trireme_trainer.disk import is_disk_failure
from trireme_trainer.symptoms import tells_of_broken_device, tells_of_lost_peer


class NaNLoss(Exception):
    """Loss or gradient norm is not a finite number; nothing of it is saved."""


class RestoreFailed(Exception):
    """The recorded checkpoint cannot be loaded on this node."""


_VICTIM_TYPES = {"DistBackendError", "DistNetworkError", "DistStoreError"}


def is_victim(error: BaseException) -> bool:
    """Whether an exception is what a collective raises when a peer has gone."""
    seen: BaseException | None = error
    while seen is not None:
        if type(seen).__name__ in _VICTIM_TYPES:
            return True
        if isinstance(seen, RuntimeError | ConnectionError) and tells_of_lost_peer(str(seen)):
            return True
        seen = seen.__cause__
    return False


def is_device_fault(error: BaseException) -> bool:
    """Whether an exception is what torch raises when the accelerator itself fails."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RuntimeError) and tells_of_broken_device(str(seen)):
            return True
        seen = seen.__cause__
    return False


def classify_exception(error: BaseException) -> tuple[FailureKind, int]:
    """(kind, exit code) for an exception that ends a rank."""
    if isinstance(error, NaNLoss):
        return FailureKind.NAN_LOSS, NAN_EXIT_CODE
    if isinstance(error, RestoreFailed):
        return FailureKind.RESTORE, RESTORE_EXIT_CODE
    if is_device_fault(error):
        return FailureKind.DEVICE, 1
    if is_disk_failure(error):
        return FailureKind.LOCAL_DISK, 1
    return (FailureKind.VICTIM if is_victim(error) else FailureKind.EXCEPTION), 1
