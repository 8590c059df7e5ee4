"""Failures of the node's own disk, told apart from mistakes in a path."""

from __future__ import annotations

import errno

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_BROKEN = frozenset({errno.EIO, errno.EROFS})


def is_full(error: BaseException) -> bool:
    """Whether the disk has no room left."""
    return isinstance(error, OSError) and error.errno in _FULL


def is_disk_failure(error: BaseException) -> bool:
    """Whether an exception is the disk's: full, over a quota, read-only, or with I/O errors."""
    return isinstance(error, OSError) and error.errno in _FULL | _BROKEN
