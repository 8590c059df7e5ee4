"""The store's credentials from the mounted Secret, read for every request, so that a mended or rotated key counts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import boto3
import botocore.session
from botocore.credentials import CredentialProvider, CredentialResolver, Credentials, ReadOnlyCredentials
from botocore.exceptions import NoCredentialsError

CREDENTIALS_ENV = "TRIREME_CREDENTIALS_DIR"
CURRENT = "..data"
"""The kubelet's link to the newest version of a volume: it swaps the link, so that all files change at once."""


class MountedCredentials(Credentials):
    """Keys named as the variables of AWS clients; where the Secret has none, the default chain's credentials."""

    def __init__(self, directory: Path, others: Callable[[], Credentials | None]) -> None:
        super().__init__("", "", method="mounted-secret")
        self._directory = directory
        self._others = others

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """What the next request is signed with. Raises NoCredentialsError."""
        found = self._read()
        key, secret = found["AWS_ACCESS_KEY_ID"], found["AWS_SECRET_ACCESS_KEY"]
        if key and secret:
            return ReadOnlyCredentials(key, secret, found["AWS_SESSION_TOKEN"])
        others = self._others()
        if others is None:
            raise NoCredentialsError
        return others.get_frozen_credentials()

    def _read(self) -> dict[str, str | None]:
        """The values of one version of the Secret: half of an old pair and half of a new one fit nothing."""
        while True:
            current = (self._directory / CURRENT).resolve()
            names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
            found = {name: _text(current / name) for name in names}
            if (self._directory / CURRENT).resolve() == current:
                return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except FileNotFoundError:
        return None


class _Mounted(CredentialProvider):
    METHOD = "mounted-secret"

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory

    def load(self) -> Credentials:
        return MountedCredentials(self._directory, boto3.session.Session().get_credentials)


def signed_in_session() -> boto3.session.Session:
    """A session with the credentials of the mounted Secret where the pod has one, else of the default chain."""
    directory = os.environ.get(CREDENTIALS_ENV)
    if not directory:
        return boto3.session.Session()
    core = botocore.session.get_session()
    core.register_component("credential_provider", CredentialResolver([_Mounted(Path(directory))]))
    return boto3.session.Session(botocore_session=core)
