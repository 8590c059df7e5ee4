"""Verified copies on the node's disk: everything read from the store is hashed before anyone uses it."""

from __future__ import annotations

import hashlib
import shutil
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from trireme.checkpoints import Manifest, ManifestError, ShardFile, digest_bytes, parse_s3_uri
from trireme.checkpoints.keys import MANIFEST_NAME
from trireme.protocol import DatasetRef, ResumePoint
from trireme_trainer.checkpoint.store import TRANSFER, ObjectNotFound, ObjectStore, StoreError, hash_file
from trireme_trainer.data.dataset import INDEX_NAME, DatasetIndex

PARALLEL_FILES = 4
PARTIAL_SUFFIX = ".part"
DISTRUSTED_SUFFIX = ".distrusted"


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


class NodeCache:
    """Directories of verified inputs on this node, named by digest."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def dataset(self, digest: str) -> Path:
        """Where a data set lies or will lie."""
        return self._root / "datasets" / digest.removeprefix("sha256:")

    def checkpoint(self, manifest_digest: str) -> Path:
        """Where a checkpoint lies or will lie."""
        return self._root / "checkpoints" / manifest_digest.removeprefix("sha256:")

    def fetch_dataset(self, store: ObjectStore, ref: DatasetRef, cancelled: Callable[[], bool]) -> Path:
        """The data set's directory, downloaded unless it is there. Raises Corrupt, StoreError."""
        directory = self.dataset(ref.digest)
        if not directory.is_dir():
            prefix = parse_s3_uri(ref.uri)[1] + "/"
            try:
                data = store.get(prefix + INDEX_NAME)
            except ObjectNotFound as error:
                raise Corrupt("ShardMissing", INDEX_NAME, error.message) from error
            if digest_bytes(data) != ref.digest:
                raise Corrupt("DigestMismatch", INDEX_NAME, f"{digest_bytes(data)}, recorded is {ref.digest}")
            index = DatasetIndex.model_validate_json(data)
            own = ShardFile(path=INDEX_NAME, bytes=len(data), sha256=ref.digest.removeprefix("sha256:"))
            fetch_files(store, prefix, [*index.files, own], directory, cancelled=cancelled)
        return directory

    def fetch_checkpoint(
        self, store: ObjectStore, point: ResumePoint, cancelled: Callable[[], bool]
    ) -> tuple[Path, Manifest]:
        """The checkpoint's directory, downloaded unless it is there. Raises Corrupt, StoreError."""
        directory = self.checkpoint(point.manifest_digest)
        prefix = parse_s3_uri(point.uri)[1] + "/"
        manifest = read_manifest(store, prefix + MANIFEST_NAME, point.manifest_digest)
        if not directory.is_dir():
            self.bring_checkpoint(store, prefix, manifest, cancelled)
        return directory, manifest

    def bring_checkpoint(
        self, store: ObjectStore, prefix: str, manifest: Manifest, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Have every file of a checkpoint here and right; only what is not is fetched. Raises Corrupt, StoreError."""
        self.forget_checkpoints(except_for=manifest.digest)
        directory = self.checkpoint(manifest.digest)
        partial = directory.with_name(directory.name + PARTIAL_SUFFIX)
        if directory.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
            directory.rename(partial)  # so that its files are hashed again
        fetch_files(store, prefix, manifest.files, directory, cancelled=cancelled)

    def distrust_checkpoints(self) -> None:
        """Have what is here fetched again: it, or the store's copy of it, led to no restore."""
        for directory in (self._root / "checkpoints").glob("*"):
            if directory.is_dir() and directory.suffix not in (PARTIAL_SUFFIX, DISTRUSTED_SUFFIX):
                # Removed when the next checkpoint is fetched: gigabytes take their time.
                directory.rename(directory.with_name(f"{directory.name}.{uuid.uuid4().hex[:8]}{DISTRUSTED_SUFFIX}"))

    def fetch_starting_weights(
        self, store: ObjectStore, uri: str, cancelled: Callable[[], bool], *, digest: str | None = None
    ) -> Path:
        """The files of a checkpoint or model named by the user. Raises Corrupt, StoreError.

        With a manifest, whose digest is checked where one is given, every file is checked against it. A model from
        elsewhere has none: of it, safetensors and JSON files are taken, which hold no code, and the engine checks
        their shapes.
        """
        directory = self._root / "starting" / hashlib.sha256(f"{uri} {digest or ''}".encode()).hexdigest()
        prefix = parse_s3_uri(uri)[1] + "/"
        if not directory.is_dir():
            if digest is not None or store.exists(prefix + MANIFEST_NAME):
                files = read_manifest(store, prefix + MANIFEST_NAME, digest).files
                fetch_files(store, prefix, files, directory, cancelled=cancelled)
            else:
                self._fetch_foreign_model(store, prefix, directory, cancelled)
        return directory

    def _fetch_foreign_model(
        self, store: ObjectStore, prefix: str, directory: Path, cancelled: Callable[[], bool]
    ) -> None:
        names = [e.key[len(prefix) :] for e in store.entries(prefix)]
        names = [n for n in names if "/" not in n and n.endswith((".safetensors", ".json"))]
        if "config.json" not in names:
            raise Corrupt("ShardMissing", "config.json", f"{prefix} holds neither a manifest nor a model")
        partial = directory.with_name(directory.name + ".part")
        with ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="fetch") as pool:
            for _ in pool.map(lambda n: store.download_parts(prefix + n, partial / n, cancelled=cancelled), names):
                pass
        partial.rename(directory)

    def forget_checkpoints(self, *, except_for: str) -> None:
        """Free the disk of checkpoints that are not resumed from, whole or partial."""
        keep = self.checkpoint(except_for).name
        for path in (self._root / "checkpoints").glob("*"):
            if path.is_file():
                path.unlink(missing_ok=True)  # a manifest's copy, which is written again with each attempt
            elif path.name not in (keep, keep + PARTIAL_SUFFIX):
                shutil.rmtree(path, ignore_errors=True)
