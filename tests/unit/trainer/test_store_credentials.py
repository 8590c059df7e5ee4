"""The store's credentials follow the mounted Secret."""

from pathlib import Path

import boto3
import pytest
from botocore.exceptions import NoCredentialsError

from trireme_storage.credentials import CREDENTIALS_ENV, MountedCredentials, signed_in_session

PAIR = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


def mount(volume: Path, version: str, **entries: str) -> None:
    """Bring a version of the Secret into the volume, as the kubelet does."""
    (volume / version).mkdir(parents=True)
    for name, value in entries.items():
        (volume / version / name).write_text(value)
    (volume / "new").symlink_to(version)
    (volume / "new").replace(volume / "..data")


@pytest.fixture(autouse=True)
def no_other_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PAIR, "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")


def test_a_rotated_key_and_token_sign_the_next_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of the container's start")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the container's start")
    monkeypatch.setenv(CREDENTIALS_ENV, str(tmp_path))
    mount(tmp_path, "..1", **PAIR, AWS_SESSION_TOKEN="first\n")
    found = signed_in_session().get_credentials()
    assert found is not None
    assert found.get_frozen_credentials()[:3] == ("key", "secret", "first")
    mount(tmp_path, "..2", AWS_ACCESS_KEY_ID="key2", AWS_SECRET_ACCESS_KEY="secret2")
    assert found.get_frozen_credentials()[:3] == ("key2", "secret2", None)


def test_a_secret_without_a_pair_leaves_the_default_chain_and_is_heard_once_it_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = boto3.session.Session()
    found = MountedCredentials(tmp_path, others.get_credentials)
    with pytest.raises(NoCredentialsError):
        found.get_frozen_credentials()
    mount(tmp_path, "..1", AWS_ACCESS_KEY_ID="key")
    with pytest.raises(NoCredentialsError):
        found.get_frozen_credentials()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "others secret")
    assert found.get_frozen_credentials().access_key == "other"
    mount(tmp_path, "..2", **PAIR)
    assert found.get_frozen_credentials().access_key == "key"


def test_a_pair_is_of_one_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount(tmp_path, "..1", AWS_ACCESS_KEY_ID="old", AWS_SECRET_ACCESS_KEY="old")
    read, swapped = Path.read_text, []

    def read_and_swap(path: Path) -> str:
        text = read(path)
        if not swapped:
            swapped.append(path)
            mount(tmp_path, "..2", AWS_ACCESS_KEY_ID="new", AWS_SECRET_ACCESS_KEY="new")
        return text

    monkeypatch.setattr(Path, "read_text", read_and_swap)
    found = MountedCredentials(tmp_path, lambda: None).get_frozen_credentials()
    assert (found.access_key, found.secret_key) == ("new", "new")
    assert swapped


def test_without_a_mounted_secret_the_default_chain_signs_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CREDENTIALS_ENV, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    found = signed_in_session().get_credentials()
    assert found is not None
    assert found.method == "env"
