"""Verified inputs on the node's disk: everything read from the store is hashed before anyone uses it."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trireme.checkpoints import Manifest, ShardFile, digest_bytes, parse_s3_uri
from trireme.checkpoints.keys import MANIFEST_NAME
from trireme.protocol import DatasetRef, ResumePoint
from trireme_storage.fetch import PARALLEL_FILES, PARTIAL_SUFFIX, Corrupt, fetch_files, read_manifest
from trireme_storage.store import ObjectNotFound, ObjectStore
from trireme_trainer.data.dataset import INDEX_NAME, DatasetIndex

DISTRUSTED_SUFFIX = ".distrusted"


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
