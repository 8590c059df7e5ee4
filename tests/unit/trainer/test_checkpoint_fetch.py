"""Downloads go on where they were cut short, and nothing unverified is ever taken for whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trireme.checkpoints import ShardFile
from trireme_storage.fetch import Corrupt, fetch_files
from trireme_storage.store import MIB, TRANSFER, ObjectNotFound, StoreError, hash_file
from trireme_trainer.checkpoint.fetch import NodeCache

DIGEST = "sha256:" + "a" * 64


class Store:
    """Objects in a dictionary that counts what is fetched."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.fetched: list[str] = []
        self.broken: set[str] = set()

    def download(self, key: str, path: Path, *, cancelled: Callable[[], bool]) -> tuple[int, str]:
        return self._get(key, path, key)

    def _get(self, key: str, path: Path, fetched: str) -> tuple[int, str]:
        self.fetched.append(fetched)
        if key not in self.objects:
            raise ObjectNotFound(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = self.objects[key]
        path.write_bytes(data[: len(data) // 2] if key in self.broken else data)
        if key in self.broken:
            raise StoreError("StoreUnavailable", "the stream broke", retryable=True)
        return hash_file(path)

    def download_parts(self, key: str, path: Path, *, cancelled: Callable[[], bool]) -> None:
        self._get(key, path, f"parts of {key}")


def stored(**contents: bytes) -> tuple[Any, Any]:
    """A store with these files and their manifest."""
    files = [ShardFile(path=n, bytes=len(d), sha256=hashlib.sha256(d).hexdigest()) for n, d in contents.items()]
    store = Store({f"step/{name}": data for name, data in contents.items()})
    return store, SimpleNamespace(files=files, digest=DIGEST)


def test_a_download_that_was_cut_short_goes_on_with_the_files_that_are_missing(tmp_path: Path) -> None:
    store, manifest = stored(one=b"first", two=b"second")
    store.broken = {"step/two"}
    cache = NodeCache(tmp_path)
    with pytest.raises(StoreError):
        cache.bring_checkpoint(store, "step/", manifest)
    assert not cache.checkpoint(DIGEST).exists()
    store.fetched, store.broken = [], set()
    cache.bring_checkpoint(store, "step/", manifest)
    assert store.fetched == ["step/two"]
    assert sorted(p.name for p in cache.checkpoint(DIGEST).iterdir()) == ["one", "two"]


def test_a_checkpoint_that_is_here_is_hashed_and_not_fetched_again(tmp_path: Path) -> None:
    store, manifest = stored(one=b"first", two=b"second")
    cache = NodeCache(tmp_path)
    cache.bring_checkpoint(store, "step/", manifest)
    store.fetched = []
    cache.bring_checkpoint(store, "step/", manifest)
    assert store.fetched == []
    (cache.checkpoint(DIGEST) / "two").write_bytes(b"SECOND")
    cache.bring_checkpoint(store, "step/", manifest)
    assert store.fetched == ["step/two"]
    assert (cache.checkpoint(DIGEST) / "two").read_bytes() == b"second"


def test_a_distrusted_copy_is_fetched_again_whole(tmp_path: Path) -> None:
    store, manifest = stored(one=b"first")
    cache = NodeCache(tmp_path)
    cache.bring_checkpoint(store, "step/", manifest)
    cache.distrust_checkpoints()
    store.objects["step/one"] = b"other"
    with pytest.raises(Corrupt, match="one"):
        cache.bring_checkpoint(store, "step/", manifest)
    assert [p.suffix for p in (tmp_path / "checkpoints").iterdir()] == [".part"]


def test_the_corrupt_file_is_named_whatever_else_fails(tmp_path: Path) -> None:
    store, manifest = stored(one=b"first", two=b"second")
    store.broken = {"step/one"}
    del store.objects["step/two"]
    with pytest.raises(Corrupt, match=r"ShardMissing.*two"):
        fetch_files(store, "step/", manifest.files, tmp_path / "x")


def test_large_files_come_in_parallel_parts(tmp_path: Path) -> None:
    store, manifest = stored(small=b"s", large=b"l" * (16 * MIB))
    assert TRANSFER.multipart_threshold == 16 * MIB
    fetch_files(store, "step/", manifest.files, tmp_path / "x")
    assert sorted(store.fetched) == ["parts of step/large", "step/small"]
