"""Files of models and adapters on this node, fetched once, verified, and shared by all replicas here."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from pathlib import Path
from typing import IO, Any

from trireme.checkpoints import Manifest, ShardFile, parse_s3_uri
from trireme.checkpoints.keys import MANIFEST_NAME
from trireme.protocol import StoreConfig
from trireme.protocol.serving import ModelSource
from trireme_serving.errors import Unusable
from trireme_storage.fetch import Corrupt, fetch_files, read_manifest, verify_local
from trireme_storage.store import ObjectStore, StoredObject, hash_file

TAKEN = (".json", ".safetensors", ".model", ".txt", ".jinja")
"""Endings of files that are fetched of a model without a manifest: none of them holds code."""


@dataclass(frozen=True)
class Files:
    """A source whose files are here and verified."""

    source: ModelSource
    directory: Path
    base: dict[str, Any] = field(default_factory=dict)
    """What the manifest of an adapter's export says of its base."""


class NodeCache:
    """A directory with one folder per version of a source, locked across processes."""

    def __init__(self, root: Path, store: StoreConfig | None, cancelled: Callable[[], bool] = lambda: False) -> None:
        self._root = root
        self._store = store
        self._cancelled = cancelled
        self._in_use: dict[str, IO[bytes]] = {}

    def bring(self, source: ModelSource) -> Files:
        """The source's files, here and verified. Raises Corrupt, StoreError, Unusable, OSError."""
        if not source.uri.startswith("s3://"):
            return self._local(source)
        store = ObjectStore(self._store or StoreConfig(uri=source.uri), uri=source.uri)
        prefix = parse_s3_uri(source.uri)[1].rstrip("/") + "/"
        if source.digest is None and not store.exists(prefix + MANIFEST_NAME):
            return self._foreign(source, store, prefix)
        manifest = read_manifest(store, prefix + MANIFEST_NAME, source.digest)
        directory = self._folder(manifest.digest)
        with self._fetching(directory):
            self._make_room(manifest.total_bytes, directory)
            self._complete(store, prefix, manifest.files, directory)
        verified = source.model_copy(update={"digest": manifest.digest})
        return Files(verified, directory, _base(manifest))

    def forget_except(self, directories: set[Path]) -> None:
        """Let other processes remove what this one does not use any more."""
        for name in [name for name in self._in_use if self._root / name not in directories]:
            self._in_use.pop(name).close()

    def _complete(self, store: ObjectStore, prefix: str, files: list[ShardFile], directory: Path) -> None:
        if directory.is_dir():
            try:
                return verify_local(directory, files)
            except Corrupt:
                partial = directory.with_name(directory.name + ".part")
                shutil.rmtree(partial, ignore_errors=True)
                directory.rename(partial)  # what is right of it is kept
        fetch_files(store, prefix, files, directory, cancelled=self._cancelled)

    def _foreign(self, source: ModelSource, store: ObjectStore, prefix: str) -> Files:
        """A model without a manifest: a folder per listing, so that changed objects are another version."""
        objects = [o for o in store.entries(prefix) if _wanted(o.key.removeprefix(prefix))]
        if not objects:
            raise Corrupt("ShardMissing", "config.json", f"{source.uri} holds no file of a model")
        listing = [(o.key, o.bytes, o.modified.isoformat()) for o in objects]
        directory = self._folder(hashlib.sha256(json.dumps([source.uri, listing]).encode()).hexdigest())
        record = directory.with_name(directory.name + ".files")
        with self._fetching(directory):
            self._make_room(sum(o.bytes for o in objects), directory)
            if directory.is_dir() and record.is_file():
                files = [ShardFile.model_validate(f) for f in json.loads(record.read_text())]
                self._complete(store, prefix, files, directory)
            else:
                files = self._download(store, prefix, objects, directory)
                record.write_text(json.dumps([f.model_dump() for f in files]))
        return Files(source.model_copy(update={"digest": digest_of(files)}), directory)

    def _download(
        self, store: ObjectStore, prefix: str, objects: list[StoredObject], directory: Path
    ) -> list[ShardFile]:
        partial = directory.with_name(directory.name + ".part")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(directory, ignore_errors=True)
        files = []
        for stored in objects:
            name = stored.key.removeprefix(prefix)
            store.download_parts(stored.key, partial / name, cancelled=self._cancelled)
            size, sha256 = hash_file(partial / name, self._cancelled)
            files.append(ShardFile(path=name, bytes=size, sha256=sha256))
        partial.rename(directory)
        return files

    def _local(self, source: ModelSource) -> Files:
        """A directory that is mounted; verified by its manifest where it has one."""
        directory = Path(source.uri.removeprefix("file://"))
        if not directory.is_dir():
            raise Unusable("ModelMissing", source.uri, "there is no such directory in the pod")
        manifest = directory / MANIFEST_NAME
        if manifest.is_file():
            found = Manifest.decode(manifest.read_bytes())
            if source.digest not in (None, found.digest):
                raise Corrupt("DigestMismatch", MANIFEST_NAME, f"{found.digest}, recorded is {source.digest}")
            verify_local(directory, found.files)
            return Files(source.model_copy(update={"digest": found.digest}), directory, _base(found))
        paths = sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
        files = []
        for path in filter(_wanted, paths):
            size, sha256 = hash_file(directory / path, self._cancelled)
            files.append(ShardFile(path=path, bytes=size, sha256=sha256))
        return Files(source.model_copy(update={"digest": digest_of(files)}), directory)

    def _folder(self, digest: str) -> Path:
        return self._root / digest.removeprefix("sha256:")

    @contextmanager
    def _fetching(self, directory: Path) -> Iterator[None]:
        """Only one process of this node works on a folder; and from now on nobody removes it."""
        self._root.mkdir(parents=True, exist_ok=True)
        if directory.name not in self._in_use:
            use = directory.with_name(directory.name + ".use").open("ab")
            flock(use, LOCK_SH)
            self._in_use[directory.name] = use
        with directory.with_name(directory.name + ".lock").open("ab") as lock:
            flock(lock, LOCK_EX)
            yield
        os.utime(directory)

    def _make_room(self, wanted_bytes: int, directory: Path) -> None:
        """Remove folders that no process uses, the one longest unused first, until there is room."""
        if directory.is_dir():
            return
        others = [p for p in self._root.iterdir() if p.is_dir() and p.suffix != ".part" and p != directory]
        for other in sorted(others, key=lambda p: p.stat().st_mtime):
            if shutil.disk_usage(self._root).free >= wanted_bytes:
                return
            with other.with_name(other.name + ".use").open("ab") as use:
                try:
                    flock(use, LOCK_EX | LOCK_NB)
                except BlockingIOError:
                    continue
                shutil.rmtree(other, ignore_errors=True)


def _wanted(path: str) -> bool:
    parts = Path(path).parts
    return path.endswith(TAKEN) and (len(parts) == 1 or parts[0] == "adapter") and not path.startswith(".")


def _base(manifest: Manifest) -> dict[str, Any]:
    base = manifest.state.get("base")
    return base if isinstance(base, dict) else {}


def digest_of(files: list[ShardFile]) -> str:
    """sha256:<hex> of names, sizes and sums: what stands for a manifest's where there is none."""
    lines = sorted(f"{f.path} {f.bytes} {f.sha256}" for f in files)
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()
