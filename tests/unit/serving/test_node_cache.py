"""Files come once to a node, whole and verified, whoever asks."""

import multiprocessing
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from model_files import adapter, model

from trireme.checkpoints import Manifest, ShardFile
from trireme.protocol.serving import ModelSource
from trireme_serving import cache as module
from trireme_serving.cache import NodeCache
from trireme_serving.errors import Unusable
from trireme_storage.fetch import Corrupt
from trireme_storage.store import ObjectNotFound, StoredObject, hash_file


class FolderStore:
    """An object store that is a folder; every object that is fetched is noted in a file."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, config: object, *, uri: str) -> "FolderStore":
        return self

    def exists(self, key: str) -> bool:
        return (self.root / key).is_file()

    def get(self, key: str) -> bytes:
        if not self.exists(key):
            raise ObjectNotFound(key)
        return (self.root / key).read_bytes()

    def entries(self, prefix: str) -> Iterator[StoredObject]:
        for path in sorted(p for p in self.root.rglob("*") if p.is_file() and p.name != "fetched"):
            key = path.relative_to(self.root).as_posix()
            if key.startswith(prefix):
                stat = path.stat()
                yield StoredObject(key, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))

    def download(self, key: str, path: Path, *, cancelled: object = None) -> tuple[int, str]:
        if not self.exists(key):
            raise ObjectNotFound(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.root / key, path)
        with (self.root / "fetched").open("a") as file:
            file.write(key + "\n")
        return hash_file(path)

    def download_parts(self, key: str, path: Path, *, cancelled: object = None) -> None:
        self.download(key, path)

    @property
    def fetched(self) -> list[str]:
        noted = self.root / "fetched"
        return noted.read_text().split() if noted.exists() else []


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderStore:
    made = FolderStore(tmp_path / "bucket")
    monkeypatch.setattr(module, "ObjectStore", made)
    return made


def put_manifest(store: FolderStore, prefix: str, **state: object) -> str:
    """A manifest beside the files under a prefix, as an export has it; its digest."""
    root = store.root / prefix
    files = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        size, sha256 = hash_file(path)
        files.append(ShardFile(path=path.relative_to(root).as_posix(), bytes=size, sha256=sha256))
    sizes = {"attempt": 1, "step": 1, "tokens": 1}
    empty = {"job_uid": "j", "model_digest": "", "dataset_digest": "", "layout": {}}
    manifest = Manifest.model_validate({**sizes, **empty, "files": files, "state": state})
    (root / "manifest.json").write_bytes(manifest.encode())
    return manifest.digest


def test_an_exported_model_is_fetched_once_and_carries_its_manifests_digest(store: FolderStore, tmp_path: Path) -> None:
    model(store.root / "m")
    digest = put_manifest(store, "m")
    for _ in range(2):
        files = NodeCache(tmp_path / "cache", None).bring(ModelSource(uri="s3://bucket/m", digest=digest))
        assert files.source.digest == digest
        assert (files.directory / "config.json").is_file()
    assert len(store.fetched) == len(set(store.fetched)) == 4


def test_an_adapters_manifest_tells_its_base(store: FolderStore, tmp_path: Path) -> None:
    adapter(store.root / "a", "s3://bucket/m")
    put_manifest(store, "a", base={"uri": "s3://bucket/m", "digest": "sha256:1"})
    files = NodeCache(tmp_path / "cache", None).bring(ModelSource(uri="s3://bucket/a"))
    assert files.base == {"uri": "s3://bucket/m", "digest": "sha256:1"}


def test_a_file_that_was_damaged_on_the_node_is_fetched_again_and_no_other(store: FolderStore, tmp_path: Path) -> None:
    model(store.root / "m")
    put_manifest(store, "m")
    cache = NodeCache(tmp_path / "cache", None)
    directory = cache.bring(ModelSource(uri="s3://bucket/m")).directory
    (directory / "model.safetensors").write_bytes(b"x")
    before = len(store.fetched)
    again = cache.bring(ModelSource(uri="s3://bucket/m")).directory
    assert store.fetched[before:] == ["m/model.safetensors"]
    assert (again / "model.safetensors").stat().st_size > 1


def test_stored_bytes_that_differ_from_the_manifest_are_refused_and_nothing_is_left(
    store: FolderStore, tmp_path: Path
) -> None:
    model(store.root / "m")
    put_manifest(store, "m")
    (store.root / "m" / "tokenizer.json").write_text("{ }")
    cache = NodeCache(tmp_path / "cache", None)
    with pytest.raises(Corrupt, match=r"tokenizer\.json"):
        cache.bring(ModelSource(uri="s3://bucket/m"))
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir() and p.suffix != ".part"]


def test_another_manifest_than_the_recorded_one_is_refused(store: FolderStore, tmp_path: Path) -> None:
    model(store.root / "m")
    put_manifest(store, "m")
    with pytest.raises(Corrupt, match="DigestMismatch"):
        NodeCache(tmp_path / "cache", None).bring(ModelSource(uri="s3://bucket/m", digest="sha256:" + "0" * 64))


def test_a_model_from_elsewhere_brings_no_code_and_is_another_version_when_its_objects_change(
    store: FolderStore, tmp_path: Path
) -> None:
    model(store.root / "m")
    (store.root / "m" / "modeling.py").write_text("raise SystemExit")
    cache = NodeCache(tmp_path / "cache", None)
    first = cache.bring(ModelSource(uri="s3://bucket/m"))
    assert not (first.directory / "modeling.py").exists()
    assert cache.bring(ModelSource(uri="s3://bucket/m")) == first
    (store.root / "m" / "tokenizer.json").write_text('{"version": "2"}')
    second = cache.bring(ModelSource(uri="s3://bucket/m"))
    assert second.directory != first.directory
    assert second.source.digest != first.source.digest


def _bring(root: str, bucket: str) -> None:
    module.ObjectStore = FolderStore(Path(bucket))  # type: ignore[assignment,misc]
    NodeCache(Path(root), None).bring(ModelSource(uri="s3://bucket/m"))


def test_replicas_that_start_together_fetch_each_file_once(store: FolderStore, tmp_path: Path) -> None:
    model(store.root / "m")
    put_manifest(store, "m")
    context = multiprocessing.get_context("fork")
    arguments = (str(tmp_path / "cache"), str(store.root))
    processes = [context.Process(target=_bring, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert sorted(store.fetched) == sorted(set(store.fetched))


def test_room_is_made_by_removing_what_nobody_uses(
    store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("m", "n", "o"):
        model(store.root / name)
        (store.root / name / "tokenizer.json").write_text(f'{{"version": "{name}"}}')
        put_manifest(store, name)
    used, idle = NodeCache(tmp_path / "cache", None), NodeCache(tmp_path / "cache", None)
    kept = used.bring(ModelSource(uri="s3://bucket/m")).directory
    unused = idle.bring(ModelSource(uri="s3://bucket/n")).directory
    idle.forget_except(set())
    full = shutil._ntuple_diskusage(10, 10, 0)  # type: ignore[attr-defined]
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: full)
    used.bring(ModelSource(uri="s3://bucket/o"))
    assert kept.is_dir()
    assert not unused.exists()


def test_a_directory_that_is_not_mounted_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unusable) as refused:
        NodeCache(tmp_path / "cache", None).bring(ModelSource(uri=f"file://{tmp_path}/gone"))
    assert refused.value.reason == "ModelMissing"
