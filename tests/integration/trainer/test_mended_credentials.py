"""A store that refused its credentials is used once they are mended."""

from pathlib import Path

import pytest
from gang_harness import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server

from trireme.protocol import StoreConfig
from trireme_storage.store import ObjectStore, StoreError


def test_a_mended_key_is_heard_by_a_store_that_is_open(
    tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, secret in enumerate(("wrong", SECRET_KEY)):
        version = tmp_path / "mounted" / f"..{number}"
        version.mkdir(parents=True)
        (version / "AWS_ACCESS_KEY_ID").write_text(ACCESS_KEY)
        (version / "AWS_SECRET_ACCESS_KEY").write_text(secret)
    link = tmp_path / "mounted" / "..data"
    link.symlink_to("..0")
    monkeypatch.setenv("TRIREME_CREDENTIALS_DIR", str(link.parent))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = ObjectStore(StoreConfig(uri=f"s3://{BUCKET}/x", endpoint=server.endpoint, path_style=True))
    with pytest.raises(StoreError) as caught:
        store.put("x/a", b"a")
    assert caught.value.reason == "AccessDenied"
    link.unlink()
    link.symlink_to("..1")
    store.put("x/a", b"a")
    assert store.get("x/a") == b"a"
