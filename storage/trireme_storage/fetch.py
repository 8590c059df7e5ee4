"""Verified copies on a disk: everything read from the store is hashed before anyone uses it."""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from trireme.checkpoints import Manifest, ManifestError, ShardFile, digest_bytes
from trireme.checkpoints.keys import MANIFEST_NAME
from trireme_storage.store import TRANSFER, ObjectNotFound, ObjectStore, StoreError, hash_file

PARALLEL_FILES = 4
PARTIAL_SUFFIX = ".part"


@dataclass
class Corrupt(Exception):
    """Stored bytes are not what they should be; `reason` as in RejectedCheckpoint."""

    reason: str
    file: str
    detail: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.file}: {self.detail}"


def read_manifest(store: ObjectStore, key: str, digest: str | None = None) -> Manifest:
    """The manifest at a key, checked against its digest where one is given. Raises Corrupt, StoreError."""
    try:
        data = store.get(key)
    except ObjectNotFound as error:
        raise Corrupt("ManifestMissing", MANIFEST_NAME, error.message) from error
    if digest is not None and digest_bytes(data) != digest:
        raise Corrupt("DigestMismatch", MANIFEST_NAME, f"{digest_bytes(data)}, recorded is {digest}")
    try:
        return Manifest.decode(data)
    except ManifestError as error:
        raise Corrupt("ManifestInvalid", MANIFEST_NAME, str(error)) from error


def fetch_files(
    store: ObjectStore,
    prefix: str,
    files: Sequence[ShardFile],
    directory: Path,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Download files into a new directory, each checked for size and SHA-256. Raises Corrupt, StoreError.

    The directory appears only when every file is right, so its existence means that it is whole. Files that an earlier
    call had brought in before it was cut short are checked and not fetched again.
    """
    partial = directory.with_name(directory.name + PARTIAL_SUFFIX)
    partial.mkdir(parents=True, exist_ok=True)
    corrupt = threading.Event()

    def fetch(file: ShardFile) -> None:
        try:
            _fetch_file(store, prefix, file, partial, lambda: corrupt.is_set() or cancelled())
        except Corrupt:
            corrupt.set()  # no other file of this checkpoint is worth fetching
            raise

    with ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="fetch") as pool:
        tasks = [pool.submit(fetch, file) for file in files]
    # All have ended: where only the store failed, what could be had is there for the next call.
    errors = [error for task in tasks if (error := task.exception()) is not None]
    if errors:
        raise min(errors, key=lambda e: not isinstance(e, Corrupt))
    wanted = {partial / file.path for file in files}
    for path in [p for p in partial.rglob("*") if p.is_file() and p not in wanted]:
        path.unlink()
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)


def _fetch_file(
    store: ObjectStore, prefix: str, file: ShardFile, directory: Path, cancelled: Callable[[], bool]
) -> None:
    """Bring one file in, unless it is there and right."""
    place = directory / file.path
    if cancelled():
        raise StoreError("Cancelled", f"download of {prefix}{file.path} was cancelled", retryable=True)
    if place.is_file() and hash_file(place, cancelled) == (file.bytes, file.sha256):
        return
    # A name of its own: a download that was given up may still be writing.
    arriving = place.with_name(f"{place.name}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}")
    try:
        if file.bytes >= TRANSFER.multipart_threshold:
            store.download_parts(prefix + file.path, arriving, cancelled=cancelled)
            size, sha256 = hash_file(arriving, cancelled)
        else:
            size, sha256 = store.download(prefix + file.path, arriving, cancelled=cancelled)
        check(file, size, sha256)
        arriving.replace(place)
    except ObjectNotFound as error:
        raise Corrupt("ShardMissing", file.path, error.message) from error
    finally:
        arriving.unlink(missing_ok=True)


def check(file: ShardFile, size: int, sha256: str) -> None:
    """Raise Corrupt unless a file has the size and SHA-256 of its manifest entry."""
    if size != file.bytes:
        raise Corrupt("SizeMismatch", file.path, f"{size} bytes, the manifest says {file.bytes}")
    if sha256 != file.sha256:
        raise Corrupt("DigestMismatch", file.path, f"SHA-256 {sha256}, the manifest says {file.sha256}")


def verify_local(directory: Path, files: Sequence[ShardFile]) -> None:
    """Raise Corrupt unless local files are what their manifest says."""
    for file in files:
        path = directory / file.path
        if not path.is_file():
            raise Corrupt("ShardMissing", file.path, f"not in {directory}")
        check(file, *hash_file(path))
